// llama.cpp as a measured peer: does what its standard input asks, one JSON object a line, and answers each on its standard output.
//
//   node worker.mjs [INSTRUCTIONS]     INSTRUCTIONS: one of llama.cpp's processor libraries, like `haswell` (AVX2); by default the best
//
//   {"do": "load", "file": F}                                             the model is read anew
//   {"do": "open", "name": C, "threads": T, "flash": B, "positions": N, "sequences": S}   a context for S sequences of N positions
//   {"do": "close", "name": C}
//   {"do": "feed", "name": C, "sequence": S, "from": P, "count": N}   N tokens at position P, in batches of 512, and the last one's logits
//   {"do": "decode", "name": C, "sequences": S, "from": P, "count": N}   N passes with one token of each of S sequences
//   {"do": "rewind", "name": C, "sequences": S, "to": P}
//   {"do": "about"}                                                       what it computes with, as "about"
//
// The answer is {"ms": how long it took}, or {"error": why not}. The prebuilt llama.cpp of node-llama-cpp is driven directly, below
// the package's own queue, sampler and tokenizer, so that nothing but llama.cpp's own passes is measured.

import fs from "node:fs";
import { createRequire } from "node:module";
import os from "node:os";
import path from "node:path";
import readline from "node:readline";
import { getBinsDir } from "@node-llama-cpp/linux-x64";

const BATCH = 512;

const folder = path.join(getBinsDir().binsDir, "linux-x64");
const llama = createRequire(import.meta.url)(path.join(folder, "llama-addon.node"));

let model;
const contexts = new Map();
let random = 0n;

/** Makes llama.cpp choose among all its processor libraries, or take the one named. */
async function start(instructions) {
    llama.setLoggerLogLevel(1);
    if (instructions === undefined) {
        llama.loadBackends(folder);
    } else {
        const only = fs.mkdtempSync(path.join(os.tmpdir(), "llama-"));
        const name = `libggml-cpu-${instructions}.so`;
        fs.symlinkSync(path.join(folder, name), path.join(only, name));
        llama.loadBackends(only);
        fs.rmSync(only, { recursive: true });
    }
    await llama.init();
}

/** As many random tokens, any but the special ones. */
function tokens(count) {
    return Uint32Array.from({ length: count }, () => {
        random = BigInt.asUintN(64, random * 6364136223846793005n + 1442695040888963407n);
        return 3 + Number(random >> 40n) % 256;
    });
}

async function feed({ name, sequence, from, count }) {
    const context = contexts.get(name);
    for (let done = 0; done < count; done += BATCH) {
        const size = Math.min(BATCH, count - done);
        const wanted = done + size === count ? [size - 1] : [];
        context.initBatch(size);
        context.addToBatch(sequence, from + done, tokens(size), Uint32Array.from(wanted));
        await context.decodeBatch();
    }
}

async function decode({ name, sequences, from, count }) {
    const context = contexts.get(name);
    for (let step = 0; step < count; step++) {
        context.initBatch(sequences);
        for (let sequence = 0; sequence < sequences; sequence++) {
            context.addToBatch(sequence, from + step, tokens(1), Uint32Array.from([0]));
        }
        await context.decodeBatch();
    }
}

async function load({ file }) {
    await model?.dispose();
    model = new llama.AddonModel(file, { gpuLayers: 0, useMmap: true });
    if (!(await model.init())) throw new Error("the model could not be loaded");
}

async function open({ name, threads, flash, positions, sequences }) {
    // The context is shared out evenly to its sequences.
    const contextSize = positions * sequences;
    const context = new llama.AddonContext(model, { contextSize, batchSize: BATCH, sequences, flashAttention: flash, threads });
    if (!(await context.init())) throw new Error("the context could not be made");
    contexts.set(name, context);
}

async function close({ name }) {
    await contexts.get(name).dispose();
    contexts.delete(name);
}

async function rewind({ name, sequences, to }) {
    for (let sequence = 0; sequence < sequences; sequence++) {
        if (!contexts.get(name).removeTokenCellsFromSequence(sequence, to, -1)) throw new Error("the sequence could not be rewound");
    }
}

const actions = { load, open, close, feed, decode, rewind, about: async () => ({ about: llama.systemInfo() }) };

await start(process.argv[2]);
for await (const line of readline.createInterface({ input: process.stdin })) {
    let answer;
    try {
        const request = JSON.parse(line);
        const began = process.hrtime.bigint();
        const more = await actions[request.do](request);
        answer = { ms: Number(process.hrtime.bigint() - began) / 1e6, ...more };
    } catch (error) {
        answer = { error: String(error?.message ?? error) };
    }
    process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);
