"""Speed of generation beside `transformers.generate` and llama.cpp, the bytes of the cache, and what bf16 costs.

    python benchmarks/generation.py RUN [--rounds 3] [--tokens 256] [--llama-cpp .llama_cpp] [--compile]
    python benchmarks/generation.py RUN --orders

RUN is a run directory, or a directory with a tokenizer, which gets a `mini` network with random weights. All sides have
the same weights in bf16 and the same prompts, and take turns; the median round counts. Everything is greedy and ends at
the length asked for. On a GPU the engine stands there once more, with its steps not recorded as graphs. `--compile`
measures torch.compile on one decoding step too, on a processor. `--orders` measures nothing but a decoding step, in
fp32 and bf16, by the order in which the matrices lie.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cutaway.generation import decoder
from cutaway.generation.engine import Engine, Request
from cutaway.model.config import ModelConfig
from cutaway.model.transformer import CausalLM
from cutaway.model.weights import initialise, load_model, save_model
from cutaway.tokenization.tokenizer import Tokenizer
from cutaway.training.precision import pick_device

PROMPT, BATCH, SHORTEST, LONGEST, REQUESTS = 32, 32, 16, 256, 128
"""Tokens of a prompt; rows of a batch; the range of uniform lengths and how many requests have one."""


def mini(tokenizer: Tokenizer) -> CausalLM:
    """The shape of the recipe `mini` with random weights."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        qk_norm=True,
    )
    model = CausalLM(config)
    initialise(model, seed=0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--llama-cpp", type=Path, default=Path(".llama_cpp"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--orders", action="store_true")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        run = arguments.run
        if not (run / "config.json").is_file():
            run, model = Path(folder) / "mini", mini(tokenizer)
            save_model(model, run, model.config)
            tokenizer.save(run)
        model = load_model(run, pick_device()).eval()
        print(f"{run.name}: {model.num_parameters() / 1e6:.1f}M parameters, vocabulary {model.config.vocab_size};")
        how = "sampled" if arguments.orders else "bf16, greedy"
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {how}\n")
        generator = torch.Generator().manual_seed(0)
        high = min(6000, model.config.vocab_size)
        prompts = torch.randint(high, (REQUESTS, PROMPT), generator=generator).tolist()
        if arguments.orders:
            orders(model, tokenizer, prompts)
            return
        lengths = torch.randint(SHORTEST, LONGEST + 1, (REQUESTS,), generator=generator).tolist()
        speeds(run, model, tokenizer, prompts, lengths, arguments)
    cache_bytes(model, tokenizer)
    cost_of_bf16(model, tokenizer, prompts[:BATCH])
    if arguments.compile:
        compiled(model, tokenizer, prompts[0])


def speeds(
    run: Path,
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    lengths: list[int],
    arguments: argparse.Namespace,
) -> None:
    """The table of tokens a second."""
    import transformers

    device = model.head_weight.device
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run, dtype=torch.bfloat16).eval().to(device)
    theirs.generation_config = transformers.GenerationConfig()
    engine = Engine(model, tokenizer, slots=BATCH, dtype=torch.bfloat16)
    single = Engine(model, tokenizer, slots=1, dtype=torch.bfloat16)
    tokens, batch = arguments.tokens, prompts[:BATCH]
    tasks: dict[str, dict[str, Callable[[], float]]] = {
        "one stream": {
            "transformers": lambda: by_transformers(theirs, [prompts[0]], [tokens], 1),
            "cutaway": lambda: by_engine(single, [prompts[0]], [tokens]),
            "llama.cpp": lambda: by_llama_cpp(run, prompts[0], tokens, arguments.llama_cpp),
        },
        f"batch of {BATCH}, {tokens // 2} tokens each": {
            "transformers": lambda: by_transformers(theirs, batch, [tokens // 2] * BATCH, BATCH),
            "cutaway": lambda: by_engine(engine, batch, [tokens // 2] * BATCH),
        },
        f"{REQUESTS} requests, {BATCH} at a time, {SHORTEST}-{LONGEST} tokens": {
            "transformers": lambda: by_transformers(theirs, prompts, lengths, BATCH),
            "cutaway": lambda: by_engine(engine, prompts, lengths),
        },
    }
    other = "llama.cpp"
    if device.type == "cuda":
        other = "cutaway, not recorded"
        launched = Engine(model, tokenizer, slots=BATCH, dtype=torch.bfloat16)
        launched.recorded = None
        one, equal, mixed = tasks.values()
        one[other] = lambda: by_engine(launched, [prompts[0]], [tokens])
        equal[other] = lambda: by_engine(launched, batch, [tokens // 2] * BATCH)
        mixed[other] = lambda: by_engine(launched, prompts, lengths)
    by_transformers(theirs, batch, [8] * BATCH, BATCH)
    by_engine(engine, batch, [8] * BATCH)
    print(f"| tokens/s | transformers.generate | cutaway | ratio | {other} | cutaway / {other} |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, sides in tasks.items():
        found: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, measure in sides.items():
                found[side].append(measure())
        middle = {side: median(values) for side, values in found.items()}
        ratio = middle["cutaway"] / middle["transformers"]
        row = f"| {name} | {middle['transformers']:,.0f} | {middle['cutaway']:,.0f} | {ratio:.2f} |"
        speed = middle.get(other, 0.0)
        print(row + (f" {speed:,.0f} | {middle['cutaway'] / speed:.2f} |" if speed else " | |"), flush=True)


def by_engine(engine: Engine, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> float:
    """Tokens a second, all prompts submitted at once; of one stream without its prompt."""
    engine.forget()
    for prompt, length in zip(prompts, lengths, strict=True):
        engine.submit(Request(prompt, length, stop_ids=(), temperature=0))
    made = sum(lengths)
    started = time.perf_counter()
    if len(prompts) == 1:
        engine.step()
        started, made = time.perf_counter(), made - 1
    while engine.busy:
        engine.step()
    seconds = time.perf_counter() - started
    assert sum(len(done.ids) for done in engine.collect()) == sum(lengths)
    return made / seconds


def by_transformers(model: Any, prompts: list[list[int]], lengths: list[int], batch: int) -> float:
    """The same in batches, each as long as its longest; what was asked for counts, not what was computed."""

    class Clock:
        """Notes when the prompt is done: `generate` hands over the prompt first, then every token."""

        def put(self, value: Tensor) -> None:
            self.seen = getattr(self, "seen", 0) + 1
            if self.seen == 2:
                self.first = time.perf_counter()

        def end(self) -> None:
            pass

    made, started = sum(lengths), time.perf_counter()
    for i in range(0, len(prompts), batch):
        ids = torch.tensor(prompts[i : i + batch], device=model.device)
        longest = max(lengths[i : i + batch])
        clock = Clock() if len(prompts) == 1 else None
        limits = {"min_new_tokens": longest, "max_new_tokens": longest}
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, streamer=clock, **limits
        )
        if clock is not None:
            started, made = clock.first, made - 1
    return made / (time.perf_counter() - started)


def by_llama_cpp(run: Path, prompt: list[int], tokens: int, folder: Path) -> float:
    """Of node-llama-cpp, one round in a process of its own; 0 where it is not installed."""
    if not (folder / "node_modules").is_dir():
        return 0.0
    file = run / "bf16.gguf"
    if not file.is_file():
        from cutaway.exporting.gguf_file import write_gguf

        write_gguf(run, file, "bf16")
    script = Path(__file__).with_name("llama_cpp_speed.mjs")
    threads, ids = str(torch.get_num_threads()), ",".join(map(str, prompt))
    command = ["node", str(script), str(folder.resolve()), str(file), threads, str(tokens), "1", ids]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    speed: float = json.loads(out)["speeds"][0]
    return speed


def orders(model: CausalLM, tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    """Milliseconds of a decoding step, the fastest of 12 times 8, by dtype, rows and order; the orders take turns."""
    sides = {"plain": None, "blocked for 1 row": 1, "blocked for 16": 16}
    print("| ms a step | " + " | ".join(sides) + " |\n| --- |" + " ---: |" * len(sides))
    for dtype in (torch.float32, torch.bfloat16):
        for rows in (1, 8, 16, 32):
            engines = []
            for order in sides.values():
                decoder.BLOCKED_FOR = {} if order is None else {dtype: order}
                engine = Engine(model, tokenizer, slots=rows, dtype=dtype, frozen=True)
                for seed, prompt in enumerate(prompts[:rows]):
                    engine.submit(Request(prompt, LONGEST, seed, stop_ids=()))
                for _ in range(32):
                    engine.step()
                engines.append(engine)
            fastest = [float("inf")] * len(engines)
            for _ in range(12):
                for side, engine in enumerate(engines):
                    started = time.perf_counter()
                    for _ in range(8):
                        engine.step()
                    fastest[side] = min(fastest[side], (time.perf_counter() - started) / 8)
            cells = " | ".join(f"{1000 * seconds:.1f}" for seconds in fastest)
            print(f"| {str(dtype).removeprefix('torch.')}, {rows} rows | {cells} |", flush=True)


def cache_bytes(model: CausalLM, tokenizer: Tokenizer) -> None:
    """What the cache takes, and what the formula says."""
    c, length = model.config, 512
    engine = Engine(model, tokenizer, slots=BATCH, max_length=length, dtype=torch.bfloat16)
    engine.cache.reserve(length)
    store = engine.cache.store
    paper = 2 * c.num_hidden_layers * BATCH * c.num_key_value_heads * length * c.head_dim * store.dtype.itemsize
    print(f"\ncache, {BATCH} slots of {length} in {store.dtype}: {store.nbytes:,} bytes; on paper {paper:,}")


def cost_of_bf16(model: CausalLM, tokenizer: Tokenizer, prompts: list[list[int]]) -> None:
    """Texts that the bf16 engine sampled, scored by the training forward in fp32."""
    engine = Engine(model, tokenizer, slots=len(prompts), dtype=torch.bfloat16)
    for seed, prompt in enumerate(prompts):
        engine.submit(Request(prompt, 128, seed, stop_ids=(), top_logprobs=1))
    while engine.busy:
        engine.step()
    differences, changed = [], []
    for done in engine.collect():
        with torch.inference_mode():
            ids = torch.tensor([done.prompt_ids + done.ids], device=model.head_weight.device)
            logits = model(ids)[0, len(done.prompt_ids) - 1 : -1].cpu()
        exact = logits.log_softmax(-1).gather(-1, torch.tensor(done.ids).unsqueeze(-1)).squeeze(-1)
        differences.append((torch.tensor(done.logprobs) - exact).abs())
        likeliest = torch.tensor([top[0][0] for top in done.top_logprobs])
        changed.append((likeliest != logits.argmax(-1)).float())
    difference, share = torch.cat(differences), torch.cat(changed).mean()
    print(f"bf16 against the training forward in fp32, {len(difference)} sampled tokens: mean |logprob difference|")
    print(f"{difference.mean():.4f} nats (largest {difference.max():.3f}); another likeliest token at {share:.2%}")


def compiled(model: CausalLM, tokenizer: Tokenizer, prompt: list[int]) -> None:
    """One decoding step of the modules with torch.compile, without sampling, beside the whole step of the engine."""
    module = load_copy(model)
    ids, positions = torch.tensor([prompt[:1]]), torch.tensor([[0]])
    import torch._inductor.config as inductor

    inductor.freezing = True
    step = torch.compile(module, dynamic=False)
    with torch.inference_mode():
        started = time.perf_counter()
        step(ids, positions=positions)
        first = time.perf_counter() - started
        started = time.perf_counter()
        for _ in range(200):
            step(ids, positions=positions)
        each = (time.perf_counter() - started) / 200
    speed = by_engine(Engine(model, tokenizer, slots=1, dtype=torch.bfloat16), [prompt], [200])
    print(f"\ntorch.compile with frozen weights: {first:.0f} s before the first step, then {1 / each:,.0f} steps/s")
    print(f"without cache and sampling; the engine, all included: {speed:,.0f} tokens/s")


def load_copy(model: CausalLM) -> CausalLM:
    """The modules in bf16."""
    copied = CausalLM(model.config)
    copied.load_state_dict(model.state_dict())
    return copied.to(torch.bfloat16).eval().requires_grad_(False)


if __name__ == "__main__":
    main()
