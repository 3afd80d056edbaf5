// Streams a chat completion with fetch: in Node 18 or later, in Deno, in Bun; and with two lines changed in a browser.
//
//     eval "$(cargo stack --env)"      # API_URL, DEMO_API_KEY
//     node examples/fetch.mjs "What is ballast for?"

const api = process.env.API_URL ?? "http://127.0.0.1:8080";
const question = process.argv[2] ?? "What is ballast for?";

const response = await fetch(`${api}/v1/chat/completions`, {
  method: "POST",
  headers: { authorization: `Bearer ${process.env.DEMO_API_KEY}`, "content-type": "application/json" },
  body: JSON.stringify({
    model: process.env.MODEL ?? "sim-small",
    stream: true,
    messages: [{ role: "user", content: question }],
  }),
});
if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);

/** The data of each event of a stream. */
async function* events(body) {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + text).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
      // A comment (`: ping`) has no data.
      if (data.length > 0) yield data.join("\n");
    }
  }
}

let answer = "";
let done = false;
for await (const data of events(response.body)) {
  if (data === "[DONE]") {
    done = true;
    break;
  }
  const event = JSON.parse(data);
  if (event.error) throw new Error(event.error.message);
  const piece = event.choices[0]?.delta?.content ?? "";
  answer += piece;
  process.stdout.write(piece);
}
console.log();
if (!done || answer === "") throw new Error("the answer is not complete");
