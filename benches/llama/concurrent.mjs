// Many requests at once: a running peer beside node-llama-cpp with several batching settings, in turn.
//
//   node concurrent.mjs FILE URL [--requests 50] [--prompt 32] [--tokens 32] [--threads 2] [--sequences 8,16,50] [--rounds 3]
//
//   FILE: the model; URL: the API of a peer that serves it, such as http://127.0.0.1:7777/v1
//
// Every request has its own prompt of so many bytes (a token each in the vocabulary of random models) and asks for so many tokens,
// greedily. A setting is the number of sequences of node-llama-cpp's context; requests beyond that wait for one to be free.

import { parseArgs } from "node:util";
import { getLlama } from "node-llama-cpp";

const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
        requests: { type: "string", default: "50" },
        prompt: { type: "string", default: "32" },
        tokens: { type: "string", default: "32" },
        threads: { type: "string", default: "2" },
        sequences: { type: "string", default: "8,16,50" },
        rounds: { type: "string", default: "3" },
    },
});
const [file, url] = positionals;
if (url === undefined) {
    console.error("usage: node concurrent.mjs FILE URL [options]; the first lines of this file say which");
    process.exit(2);
}
const [requests, promptLength, tokens, threads, rounds] =
    [values.requests, values.prompt, values.tokens, values.threads, values.rounds].map(Number);
const settings = values.sequences.split(",").map(Number);

/** Different for every request and round, so that nothing is reused. */
function promptOf(round, request) {
    let state = round * 1000 + request + 1;
    return Array.from({ length: promptLength }, () => {
        state = (state * 48271) % 2147483647;
        return String.fromCharCode(97 + (state % 26));
    }).join("");
}

/** Starts all requests at the same time; returns the milliseconds that each took, sorted. */
async function race(round, one) {
    const began = performance.now();
    const all = Array.from({ length: requests }, async (_, request) => {
        const got = await one(promptOf(round, request));
        if (got !== tokens) throw new Error(`${got} tokens instead of ${tokens}`);
        return performance.now() - began;
    });
    return (await Promise.all(all)).sort((a, b) => a - b);
}

async function brigade(prompt) {
    const answer = await fetch(`${url}/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ model: name, prompt, max_tokens: tokens, temperature: 0 }),
    });
    const body = await answer.json();
    if (!answer.ok) throw new Error(JSON.stringify(body));
    return body.usage.completion_tokens;
}

const models = await (await fetch(`${url}/models`)).json();
const name = models.data[0].id;
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: threads });
const model = await llama.loadModel({ modelPath: file });

/** Runs requests over the sequences of a context, as many at a time as there are. */
async function withSequences(count, run) {
    const context = await model.createContext({ sequences: count, contextSize: promptLength + tokens + 8, batchSize: 512, threads });
    const free = Array.from({ length: count }, () => context.getSequence());
    const waiting = [];
    const one = async (prompt) => {
        const sequence = free.pop() ?? (await new Promise((resolve) => waiting.push(resolve)));
        let got = 0;
        await sequence.clearHistory();
        const input = model.tokenize(prompt);
        for await (const _ of sequence.evaluate(input, { temperature: 0, yieldEogToken: true })) {
            got += 1;
            if (got === tokens) break;
        }
        const next = waiting.shift();
        if (next) next(sequence);
        else free.push(sequence);
        return got;
    };
    const times = await run(one);
    await context.dispose();
    return times;
}

const contestants = [
    { name: "brigade", run: (round) => race(round, brigade), medians: [], slowest: [] },
    ...settings.map((count) => ({
        name: `node-llama-cpp, ${count} sequences`,
        run: (round) => withSequences(count, (one) => race(round, one)),
        medians: [],
        slowest: [],
    })),
];
for (let round = 0; round <= rounds; round++) {
    for (let turn = 0; turn < contestants.length; turn++) {
        const contestant = contestants[(turn + round) % contestants.length];
        const times = await contestant.run(round);
        // The first round warms up.
        if (round === 0) continue;
        contestant.medians.push(times[Math.floor(times.length / 2)]);
        contestant.slowest.push(times.at(-1));
    }
}

const middle = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
console.log(`${requests} requests at once, ${promptLength} tokens each, ${tokens} asked for, ${threads} threads, ${rounds} rounds`);
for (const { name, medians, slowest } of contestants) {
    const shown = [medians, slowest].map((values) => `${middle(values).toFixed(0)} (${values.map((value) => value.toFixed(0)).join(" ")})`);
    console.log(`${name.padEnd(32)} median latency ${shown[0]} ms, slowest ${shown[1]} ms`);
}
const best = contestants.slice(1).reduce((a, b) => (middle(a.medians) <= middle(b.medians) ? a : b));
const ratios = contestants[0].medians.map((ours, round) => ours / best.medians[round]);
console.log(`ratio to ${best.name}: ${middle(ratios).toFixed(2)} (${ratios.map((ratio) => ratio.toFixed(2)).join(" ")})`);
process.exit(0);
