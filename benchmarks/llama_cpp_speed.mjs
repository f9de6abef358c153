// llama.cpp, one sequence, greedy: node llama_cpp_speed.mjs FOLDER MODEL.gguf THREADS TOKENS ROUNDS "ID,ID,..." > JSON
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads, tokens, rounds, prompt] = process.argv.slice(2);
const entry = join(folder, "node_modules", "node-llama-cpp", "dist", "index.js");
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(entry));
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({
    contextSize: 1024,
    batchSize: 512,
    threads: Number(threads),
    flashAttention: true,
    ignoreMemorySafetyChecks: true,
});
const sequence = context.getSequence();
const ids = prompt.split(",").map(Number);
const speeds = [];
const written = [];
for (let round = 0; round < Number(rounds) + 1; round++) {
    await sequence.clearHistory();
    const count = round === 0 ? 8 : Number(tokens);
    let made = 0;
    let started = 0;
    for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
        if (round === 1) written.push(token);
        // The clock starts with the first token: the prompt is not counted on any side.
        if (made++ === 0) started = performance.now();
        if (made > count) break;
    }
    if (round > 0) speeds.push((made - 1) / ((performance.now() - started) / 1000));
}
process.stdout.write(JSON.stringify({ speeds, written }), () => process.exit(0));
