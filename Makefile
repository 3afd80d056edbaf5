# Short names for what one types most; each is one command. Without make: type the command.

.PHONY: help dev test build up stop logs shell clean db-reset db-dump db-load

help: ## show this
	@sed -n 's/^\([a-z-]*\): ## /  \1\t/p' Makefile | expand -t 14

dev: ## the whole stack on this machine, without Docker
	cargo stack

test: ## every check
	cargo verify

build: ## the container image
	docker compose build

up: ## the whole stack in containers
	docker compose up --build

stop: ## end the containers, keep the data
	docker compose down

logs: ## follow the containers' logs
	docker compose logs --follow --tail=100

shell: ## SQL prompt in the containers' database
	docker compose exec postgres psql --username=ballast --dbname=ballast

clean: ## end the containers and delete their data
	docker compose down --volumes

db-reset: ## delete the data of `make dev` (asks first)
	cargo stack --reset

db-dump: ## write the database of `make dev` into FILE (default dev.dump), for somebody else
	cargo xtask database dump $(or $(FILE),dev.dump)

db-load: ## replace the database of `make dev` by FILE (asks first)
	cargo xtask database load $(or $(FILE),dev.dump)
