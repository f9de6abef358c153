"""A run directory in the hands of Transformers, PEFT and TRL: generate, train a step, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Town, finish

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
trl = pytest.importorskip("trl")

from cutaway.generation.generate import generate  # noqa: E402
from cutaway.generation.sampling import Sampling  # noqa: E402
from cutaway.model.weights import load_model  # noqa: E402
from cutaway.tokenization.chat import render  # noqa: E402
from cutaway.tokenization.tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

CHAT = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A small model."}]


@pytest.fixture(scope="module")
def run(town: Town, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained and fine-tuned as a user would do it."""
    folder = tmp_path_factory.mktemp("runs")
    finish(town.pretrain(folder / "base", 8), folder / "log")
    finish(town.sft(folder / "base", folder / "chat", 4), folder / "log")
    return folder / "chat"


def opened(run: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(run).eval()
    return model, transformers.AutoTokenizer.from_pretrained(run)


def test_transformers_generates_what_we_generate(run: Path) -> None:
    theirs, tokenizer = opened(run)
    ours, words = load_model(run).eval(), Tokenizer.load(run)
    encoded = tokenizer.apply_chat_template(CHAT[:1], add_generation_prompt=True, return_tensors="pt", return_dict=True)
    prompt = encoded["input_ids"][0].tolist()
    assert prompt == render(CHAT[:1], words, add_generation_prompt=True).ids
    assert theirs.generation_config.eos_token_id == [words.im_end_id, words.eos_id]
    written = theirs.generate(**encoded, do_sample=False, max_new_tokens=20)[0, len(prompt) :].tolist()
    (done,) = generate(ours, [prompt], words, sampling=Sampling(temperature=0.0), max_new_tokens=20)
    assert written == list(done.ids)


def test_transformers_trains_a_step_and_we_read_it(run: Path, tmp_path: Path) -> None:
    model, tokenizer = opened(run)
    ids = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    before = model(ids, labels=ids).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert model(ids, labels=ids).loss < before
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        torch.testing.assert_close(load_model(tmp_path).eval()(ids), model(ids).logits, atol=1e-4, rtol=0)
    assert Tokenizer.load(tmp_path).encode("hello") == Tokenizer.load(run).encode("hello")


def test_peft_trains_an_adapter_and_we_read_it(run: Path, tmp_path: Path) -> None:
    model, tokenizer = opened(run)
    ids = tokenizer.apply_chat_template(CHAT, return_tensors="pt", return_dict=True)["input_ids"]
    with torch.no_grad():
        plain = model(ids).logits
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.AdamW(adapted.parameters(), lr=5e-2)
    for _ in range(2):
        adapted(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(tmp_path)
    adapted.eval()
    with torch.no_grad():
        expected = adapted(ids).logits
        assert (expected - plain).abs().max() > 0.01
        torch.testing.assert_close(load_model(tmp_path).eval()(ids), expected, atol=1e-4, rtol=0)


def test_trl_trains_a_step(run: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([{"messages": CHAT}] * 8)
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "report_to": [], "use_cpu": True}
    arguments = trl.SFTConfig(str(tmp_path / "trl"), learning_rate=1e-2, save_strategy="no", bf16=False, **options)
    trainer = trl.SFTTrainer(str(run), args=arguments, train_dataset=rows)
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    assert trainer.train().training_loss > 0
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    trainer.save_model(str(tmp_path / "out"))
    ids = torch.arange(5).unsqueeze(0)
    with torch.no_grad():
        expected = trainer.model.eval()(ids).logits.float()
        torch.testing.assert_close(load_model(tmp_path / "out").eval()(ids), expected, atol=1e-3, rtol=0)
