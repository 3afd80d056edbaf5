# The one image of every role: `api` by default, any other by its command (`docker run IMAGE worker`).
# Dockerfile.worker is the same but for its last line; `cargo test -p xtask` holds the two together.
#
#   docker build -t ballast .                            as it ships
#   docker build -t ballast --build-arg PROFILE=local .  builds in about half the time, for trying out
#   docker buildx build --platform linux/amd64,linux/arm64 -t REGISTRY/ballast:VERSION --push .
#                                                        for both; nothing here knows the architecture
#
# gcc, which the base image has, is all that the crates with C code ask for.

# ---- Tools: one builds the dependencies as a layer of their own, one writes their list into the binary, where scanners find it.
FROM rust:1.95-slim-bookworm AS chef
# Without optimisation: it runs twice for a second, and this way it is built in half a minute.
RUN CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-chef@0.1.78 cargo-auditable@0.7.7
WORKDIR /build

# ---- What the dependencies are: changes only with a manifest or the lockfile.
FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
ARG PROFILE=release
COPY --from=plan /build/recipe.json recipe.json
RUN cargo chef cook --locked --profile "$PROFILE" --package ballast --recipe-path recipe.json
# ---- Our own crates. Migrations and checked queries are compiled in: no database is needed here, no file at run time.
COPY . .
RUN cargo auditable build --locked --profile "$PROFILE" --package ballast --bin ballast \
    && install -D --mode=755 "target/$PROFILE/ballast" /out/ballast

# ---- libc, CA certificates, time zones, and the binary: no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /out/ballast /usr/local/bin/ballast

ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ballast" \
      org.opencontainers.image.description="A production backend in one binary: API, AI proxy, worker" \
      org.opencontainers.image.source="https://github.com/your-org/ballast" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

# Production refuses sample secrets and missing settings; docker-compose.yml says `development`.
ENV APP_ENV=production PORT=8080
EXPOSE 8080
# By number, so that `runAsNonRoot` can be checked; the binary's file belongs to root.
USER 65532:65532
HEALTHCHECK --interval=30s --timeout=10s --start-period=40s --retries=3 \
    CMD ["/usr/local/bin/ballast", "healthcheck"]
# Exec form: the binary is PID 1 and takes SIGTERM itself.
ENTRYPOINT ["/usr/local/bin/ballast"]
CMD ["api"]
