// The logits of llama.cpp after each of the given tokens, for `examples/accuracy.rs` to compare:
//
//     node accuracy.mjs FILE.gguf TOKENS OUT [on|off]
//
// - TOKENS: token ids with commas between, evaluated as they are
// - OUT: is written as [tokens, vocabulary] f32, little-endian
// - on, off: flash attention; without it llama.cpp decides
//
// On CPU threads alone, with llama.cpp's defaults for everything else: weights repacked for the processor, inputs of
// products rounded to 8 bits, keys and values as f16.

import { writeFile } from "node:fs/promises";

import { getLlama, LlamaLogLevel } from "node-llama-cpp";

const [file, list, out, flash = "auto"] = process.argv.slice(2);
const tokens = list.split(",").map(Number);
const flashAttention = { on: true, off: false, auto: "auto" }[flash];

const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: file });
const vocabulary = model.fileInfo.metadata.tokenizer.ggml.tokens.length;
const contextSize = Math.max(256, tokens.length + 8);
const context = await model.createContext({ contextSize, batchSize: contextSize, threads: 2, flashAttention });

const wanted = tokens.map((token) => [token, { generateNext: { logits: true } }]);
const evaluated = await context.getSequence().controlledEvaluate(wanted);
const logits = new Float32Array(tokens.length * vocabulary).fill(NaN);
evaluated.forEach(({ next }, row) => {
    for (const [token, logit] of next.logits) {
        logits[row * vocabulary + token] = logit;
    }
});
await writeFile(out, Buffer.from(logits.buffer));
await llama.dispose();
