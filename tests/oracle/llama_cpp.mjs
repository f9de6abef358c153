// The real llama.cpp, asked over JSON: node llama_cpp.mjs FOLDER REQUESTS > answers. llama_cpp.py says what is asked.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, requests] = process.argv.slice(2);
const entry = join(folder, "node_modules", "node-llama-cpp", "dist", "index.js");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });

const answers = [];
for (const request of JSON.parse(readFileSync(requests, "utf-8"))) answers.push(await answer(request));
process.stdout.write(JSON.stringify(answers), () => process.exit(0));

async function answer({ model: modelPath, texts, special, ends, prompts, logits, nats, greedy, lora, cache }) {
    const model = await llama.loadModel({ modelPath });
    const found = {
        tokens: texts.map((text) => Array.from(model.tokenize(text, special))),
        bos: model.tokens.shouldPrependBosToken,
        ends: ends.map((id) => model.isEogToken(id)),
        logits: [],
        nats: [],
        greedy: [],
    };
    if (prompts.length > 0) {
        const longest = Math.max(...prompts.map((ids) => ids.length)) + greedy;
        const context = await model.createContext({
            contextSize: Math.max(256, longest + 8),
            batchSize: 512,
            threads: 1,
            flashAttention: false,
            experimentalKvCacheKeyType: cache,
            experimentalKvCacheValueType: cache,
            lora: lora === null ? undefined : { adapters: [{ filePath: lora, scale: 1 }] },
            ignoreMemorySafetyChecks: true,
        });
        const sequence = context.getSequence();
        for (const ids of prompts) {
            if (logits) found.logits.push(await allLogits(sequence, ids));
            if (nats) found.nats.push(await allNats(sequence, ids));
            if (greedy) found.greedy.push(await mostLikely(sequence, ids, greedy));
        }
        await context.dispose();
    }
    await model.dispose();
    return found;
}

async function allLogits(sequence, ids) {
    await sequence.clearHistory();
    const outputs = await sequence.controlledEvaluate(ids.map((id) => [id, { generateNext: { logits: true } }]));
    return outputs.map(({ next }) => {
        const row = new Array(next.logits.size);
        for (const [token, value] of next.logits) row[token] = value;
        return row;
    });
}

async function allNats(sequence, ids) {
    await sequence.clearHistory();
    const wanted = (target) => ({ logits: { filter: { tokens: [target], includeTop: 1 } }, totalLogitWeight: true });
    const inputs = ids.slice(0, -1).map((id, place) => [id, { generateNext: wanted(ids[place + 1]) }]);
    const outputs = await sequence.controlledEvaluate(inputs);
    return outputs.map(({ next }, place) => {
        const highest = Math.max(...next.logits.values());
        return highest - next.logits.get(ids[place + 1]) + Math.log(next.totalLogitWeight);
    });
}

async function mostLikely(sequence, ids, count) {
    await sequence.clearHistory();
    const written = [];
    for await (const token of sequence.evaluate(ids, { temperature: 0 })) {
        written.push(token);
        if (written.length >= count) break;
    }
    return written;
}
