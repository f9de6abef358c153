import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from cutaway.errors import UserError
from cutaway.generation import decoder
from cutaway.generation import engine as engine_module
from cutaway.generation.defaults import CHAT, generation_config, load_sampling, stop_ids
from cutaway.generation.engine import Completion, Engine, Request
from cutaway.generation.generate import document_prompt, generate, stream
from cutaway.generation.sampling import Sampling
from cutaway.model.lora import LoRAConfig, adapt
from cutaway.model.mlp import SwiGLU
from cutaway.model.transformer import CausalLM
from generation_helpers import finish, tiny_model, tiny_tokenizer

SAMPLING = Sampling(temperature=1.3, top_k=200, top_p=0.98, min_p=0.001)


def requests() -> list[Request]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for i in range(9):
        ids = torch.randint(0, 256, (1 + 3 * i % 11,), generator=generator).tolist()
        kind = Sampling(temperature=0) if i % 3 == 0 else SAMPLING
        made.append(Request(ids, 4 + 5 * i % 17, seed=i, **dataclasses.asdict(kind)))
    return made


def new_engine(slots: int = 4, max_length: int | None = None) -> Engine:
    return Engine(tiny_model(), tiny_tokenizer(), slots=slots, max_length=max_length)


def run_one(engine: Engine, request: Request) -> Completion:
    number = engine.submit(request)
    return finish(engine)[number]


def alone(request: Request) -> Completion:
    return run_one(new_engine(1), request)


def test_greedy_is_the_argmax_of_the_full_forward() -> None:
    model, prompt = tiny_model(), [5, 9, 100]
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(12):
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
        logprobs = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1))[0, 2:, 0]
    done = alone(Request(prompt, 12, stop_ids=(), temperature=0))
    assert done.ids == ids[0, 3:].tolist() and done.finish_reason == "length"
    torch.testing.assert_close(torch.tensor(done.logprobs), logprobs, atol=1e-5, rtol=0)


@pytest.mark.long
@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.permutations(range(9)), st.integers(1, 5), st.lists(st.integers(0, 3), min_size=9, max_size=9))
def test_a_request_gets_the_same_whatever_else_is_in_the_batch(order: list[int], slots: int, gaps: list[int]) -> None:
    """Any order, any number of slots, joining at any step."""
    if not _EXPECTED:
        _EXPECTED.extend(alone(request) for request in requests())
    engine = new_engine(slots)
    ids = {}
    for i, gap in zip(order, gaps, strict=True):
        ids[i] = engine.submit(requests()[i])
        for _ in range(gap):
            engine.step()
    done = finish(engine)
    for i, expected in enumerate(_EXPECTED):
        got = done[ids[i]]
        assert (got.ids, got.text, got.finish_reason) == (expected.ids, expected.text, expected.finish_reason)
        torch.testing.assert_close(torch.tensor(got.logprobs), torch.tensor(expected.logprobs), atol=1e-5, rtol=0)


_EXPECTED: list[Completion] = []


def test_every_running_request_gets_one_token_a_step_and_a_free_slot_is_refilled() -> None:
    engine = new_engine(2)
    for length in (1, 3, 2):
        engine.submit(Request([7, 8], length, stop_ids=()))
    assert [[piece.id for piece in engine.step()] for _ in range(4)] == [[0, 1], [1, 2], [1, 2], []]
    assert not engine.busy and [done.id for done in engine.collect()] == [0, 1, 2]
    assert engine.collect() == []


def test_long_prompts_are_split_over_forward_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = generate(new_engine(9), [r.prompt_ids for r in requests()], sampling=SAMPLING, max_new_tokens=3)
    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 12)
    after = generate(new_engine(9), [r.prompt_ids for r in requests()], sampling=SAMPLING, max_new_tokens=3)
    assert [one.ids for one in before] == [one.ids for one in after]


def test_stop_ids_stop_strings_and_the_end_of_the_context() -> None:
    free = alone(Request([5, 9, 100], 30, seed=3, stop_ids=()))
    token = free.ids[6]
    stopped = alone(Request([5, 9, 100], 30, seed=3, stop_ids=[token]))
    cut = free.ids.index(token) + 1
    assert stopped.ids == free.ids[:cut] and stopped.finish_reason == "stop"
    middle = free.text[4:7]
    by_string = alone(Request([5, 9, 100], 30, seed=3, stop_ids=(), stop=[middle]))
    assert by_string.finish_reason == "stop" and by_string.text == free.text[: free.text.index(middle)]
    short = new_engine(max_length=10)
    full = run_one(short, Request([5, 9, 100], 30, seed=3, stop_ids=()))
    assert full.ids == free.ids[:7] and full.finish_reason == "context"


def test_the_cache_grows_under_way() -> None:
    request = Request([1] * 250, 20, stop_ids=(), temperature=0)
    model = tiny_model()
    ids = torch.tensor([[1] * 250])
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), dim=1)
    assert alone(request).ids == ids[0, 250:].tolist()


def test_wrong_requests_are_refused_in_one_line() -> None:
    engine = new_engine(max_length=8)
    for prompt, reason in (([], "empty"), ([1] * 8, "context is full"), ([10**6], "vocabulary"), ([-1], "vocabulary")):
        with pytest.raises(UserError, match=reason):
            engine.submit(Request(prompt))
    with pytest.raises(UserError, match="max_new_tokens"):
        engine.submit(Request([1], 0))


def test_pieces_say_which_tokens_came_and_what_else_could_have() -> None:
    engine = new_engine(2)
    wanted = dataclasses.replace(requests()[1], top_logprobs=5, temperature=0.7)
    engine.submit(requests()[2])
    number = engine.submit(wanted)
    pieces = []
    while engine.busy:
        pieces += [piece for piece in engine.step() if piece.id == number]
    (done,) = (one for one in engine.collect() if one.id == number)
    assert [token for piece in pieces for token in piece.ids] == done.ids
    assert [value for piece in pieces for value in piece.logprobs] == done.logprobs
    assert [top for piece in pieces for top in piece.top_logprobs] == done.top_logprobs
    with torch.no_grad():
        logits = tiny_model()(torch.tensor([done.prompt_ids + done.ids]))[0, len(done.prompt_ids) - 1 : -1]
    expected = (logits / 0.7).log_softmax(-1).topk(5)
    assert [[token for token, _ in top] for top in done.top_logprobs] == expected.indices.tolist()
    got = torch.tensor([[value for _, value in top] for top in done.top_logprobs])
    torch.testing.assert_close(got, expected.values, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="top_logprobs"):
        engine.submit(Request([1], top_logprobs=-1))


def test_penalties_count_prompt_and_answer_of_their_own_row_only() -> None:
    engine = new_engine(2)
    free = alone(Request([5, 9, 100], 30, stop_ids=(), temperature=0))
    engine.submit(Request([5, 9, 100], 30, stop_ids=(), temperature=0))
    number = engine.submit(Request([5, 9, 100], 30, stop_ids=(), temperature=0, presence_penalty=1e4))
    done = finish(engine)
    assert done[0].ids == free.ids
    # A penalty that nothing withstands: no token twice in the answer, though those of the prompt may come.
    assert len(set(done[number].ids)) == 30 and len(set(free.ids)) < 30
    repetition = alone(Request([5, 9, 100], 30, stop_ids=(), temperature=0, repetition_penalty=1e9))
    assert len({5, 9, 100, *repetition.ids}) == 33


PREFIX = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(9)).tolist()


def test_a_group_of_samples_computes_its_prompt_once_and_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(8)
    fed: list[int] = []
    begin = engine.cache.begin

    def counted(first: int, positions: torch.Tensor, length: int) -> None:
        fed.append(positions.numel())
        begin(first, positions, length)

    monkeypatch.setattr(engine.cache, "begin", counted)
    group = [Request(PREFIX, 12, seed, stop_ids=()) for seed in range(5)]
    other = Request([*PREFIX[:30], 3, 4, 5], 12, 7, stop_ids=())
    ids = [engine.submit(request) for request in [*group, other]]
    engine.step()
    # The shorter prompt of 33; of the first of the group what differs; of its others the last token.
    assert fed[0] == 33 and sum(fed) == 33 + 5 * 10
    done = finish(engine)
    for number, request in zip(ids, [*group, other], strict=True):
        expected = alone(request)
        assert done[number].ids == expected.ids
        torch.testing.assert_close(
            torch.tensor(done[number].logprobs), torch.tensor(expected.logprobs), atol=1e-5, rtol=0
        )
    assert sorted(done[number].reused for number in ids) == [0, 30, 30, 30, 30, 30]


def test_a_group_of_samples_shares_what_a_request_that_has_left_began_with() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=6, frozen=True)
    run_one(engine, Request(PREFIX, 3, stop_ids=()))
    group = [Request(PREFIX, 12, seed, stop_ids=()) for seed in range(4)]
    group.append(Request([*PREFIX[:30], *PREFIX], 12, 7, stop_ids=()))
    ids = [engine.submit(request) for request in group]
    done = finish(engine)
    assert [done[number].reused for number in ids] == [39, 39, 39, 39, 30]
    for number, request in zip(ids, group, strict=True):
        expected = alone(request)
        assert done[number].ids == expected.ids
        assert done[number].logprobs == pytest.approx(expected.logprobs, abs=1e-5)


@pytest.mark.long
@settings(max_examples=10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 39), st.integers(1, 12), st.integers(0, 6)), min_size=4, max_size=14
    ),
    st.integers(1, 4),
)
def test_prompts_that_begin_alike_share_and_change_nothing(asked: list[tuple[int, int, int, int]], slots: int) -> None:
    """Requests branch off three texts at any place, come at any time, and leave what others begin with."""
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=slots, frozen=True)
    wanted = {}
    for kind, cut, length, gap in asked:
        prompt = [[kind, *PREFIX, *PREFIX][i] for i in range(cut + 20)] + [kind + cut]
        request = Request(prompt, length, seed=cut, stop_ids=())
        wanted[engine.submit(request)] = request
        for _ in range(gap):
            engine.step()
    done = finish(engine)
    for number, request in wanted.items():
        expected = alone(request)
        assert done[number].ids == expected.ids
        torch.testing.assert_close(
            torch.tensor(done[number].logprobs), torch.tensor(expected.logprobs), atol=1e-5, rtol=0
        )


def test_padding_behind_a_prompt_taken_over_stays_in_its_slot() -> None:
    """The second sample has one token left to compute and is padded to the other prompt's 184, past its slot's end."""
    first = [i % 200 for i in range(200)]
    requests = [Request(first, 4, 0), Request(first, 4, 1), Request([*first[:16], *[7, 9] * 92], 4, 2)]
    engine = new_engine(3)
    ids = [engine.submit(request) for request in requests]
    done = finish(engine)
    assert [done[number].reused for number in ids] == [0, 199, 16]
    for number, request in zip(ids, requests, strict=True):
        expected = alone(request)
        assert done[number].ids == expected.ids
        assert done[number].logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_the_next_turn_of_a_conversation_begins_where_the_last_one_ended() -> None:
    frozen = Engine(tiny_model(), tiny_tokenizer(), slots=2, frozen=True)
    first = run_one(frozen, Request(PREFIX, 20, stop_ids=()))
    between = run_one(frozen, Request([1] * 30, 5, stop_ids=()))
    request = Request([*PREFIX, *first.ids, 8, 9], 5, stop_ids=())
    second = run_one(frozen, request)
    assert (first.reused, between.reused, second.reused) == (0, 0, 40 + 19)
    assert second.ids == alone(request).ids
    # New weights, or a live model whose weights may be new: nothing old is used.
    frozen.refresh()
    assert run_one(frozen, request).reused == 0
    live = new_engine(2)
    run_one(live, request)
    assert run_one(live, request).reused == 0


@pytest.mark.parametrize("qk_norm", [True, False])
def test_the_packed_copy_computes_what_the_model_does(qk_norm: bool) -> None:
    model = tiny_model(qk_norm)
    packed = Engine(model, tiny_tokenizer(), slots=4, frozen=True)
    plain = Engine(model, tiny_tokenizer(), slots=4)
    for request in requests():
        one, other = run_one(packed, request), run_one(plain, request)
        assert one.ids == other.ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 40), length=st.integers(1, 4), inputs=st.integers(1, 70), outputs=st.integers(1, 70))
def test_a_packed_product_is_the_plain_one_for_any_rows(
    dtype: torch.dtype, batch: int, length: int, inputs: int, outputs: int
) -> None:
    generator = torch.Generator().manual_seed(batch)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    x = torch.randn(batch, length, inputs, generator=generator).to(dtype)
    for given_x in (x, x[:, 0], x[:, -1:]):  # the last two are not contiguous
        got = decoder.pack_linear(weight, dtype=dtype)(given_x)
        exact = given_x.double() @ weight.double().T
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(got.double(), exact, atol=tolerance * inputs**0.5, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 40), width=st.integers(1, 16), inner=st.integers(1, 70))
def test_the_packed_feed_forward_layer_is_the_plain_one_for_any_rows(
    dtype: torch.dtype, batch: int, width: int, inner: int
) -> None:
    config = dataclasses.replace(tiny_model().config, hidden_size=4 * width, intermediate_size=inner)
    mlp, generator = SwiGLU(config), torch.Generator().manual_seed(batch)
    with torch.no_grad():
        for weight in mlp.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5)
    x = torch.randn(batch, 1, config.hidden_size, generator=generator)
    # The packed layer's input is a `unit_norm`, whose root of d it multiplies in.
    packed = decoder._swiglu(mlp, torch.ones(config.hidden_size), dtype)
    got = packed((x / config.hidden_size**0.5).to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(got.float(), mlp(x).detach(), atol=tolerance, rtol=tolerance)


def test_the_packed_copy_gives_every_row_of_a_batch_what_it_gets_alone() -> None:
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=5, frozen=True)
    ids = [engine.submit(request) for request in requests()]
    done = finish(engine)
    for number, request in zip(ids, requests(), strict=True):
        expected = alone(request)
        assert done[number].ids == expected.ids
        assert done[number].logprobs == pytest.approx(expected.logprobs, abs=1e-5)


def test_the_packed_copy_counts_adapters_and_experts_in() -> None:
    model = copy.deepcopy(tiny_model())
    adapt(model, LoRAConfig(rank=2, dora=True))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    experts = CausalLM(
        dataclasses.replace(model.config, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    )
    for one in (model, experts.eval()):
        request = Request([5, 9, 100], 10, stop_ids=(), temperature=0)
        packed = run_one(Engine(one, tiny_tokenizer(), slots=1, frozen=True), request)
        plain = run_one(Engine(one, tiny_tokenizer(), slots=1), request)
        assert packed.ids == plain.ids
        torch.testing.assert_close(torch.tensor(packed.logprobs), torch.tensor(plain.logprobs), atol=1e-5, rtol=0)
        Engine(one, tiny_tokenizer(), slots=1, dtype=torch.bfloat16).submit(request)
    assert run_one(Engine(model, tiny_tokenizer(), slots=1, frozen=True), request).ids != alone(request).ids


def test_cancelling_frees_the_slot_and_disturbs_nobody() -> None:
    engine = new_engine(3)
    ids = [engine.submit(request) for request in requests()[6:9]]
    engine.step()
    engine.cancel(ids[0])
    engine.cancel(12345)
    done = finish(engine)
    assert sorted(done) == ids[1:]
    assert [done[i].ids for i in ids[1:]] == [alone(request).ids for request in requests()[7:9]]


def test_a_prompt_whose_step_failed_is_computed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its keys and values are not there, so the same prompt must not begin with them."""
    engine = Engine(tiny_model(), tiny_tokenizer(), slots=2, frozen=True)
    request = Request(list(range(5, 45)), max_new_tokens=6, temperature=0)
    with monkeypatch.context() as broken:
        broken.setattr(engine.cache, "reserve", lambda length: (_ for _ in ()).throw(MemoryError))
        failed = engine.submit(request)
        with pytest.raises(MemoryError):
            engine.step()
    engine.cancel(failed)
    again = run_one(engine, request)
    assert again.reused == 0 and again.ids == alone(request).ids


def test_streaming_gives_the_completion_and_leaves_others_alone() -> None:
    engine = new_engine(2)
    other = engine.submit(requests()[1])
    pieces = list(stream(engine, requests()[2]))
    last = pieces[-1].completion
    assert last is not None and "".join(piece.text for piece in pieces) == last.text == alone(requests()[2]).text
    assert finish(engine)[other].ids == alone(requests()[1]).ids
    for piece in stream(engine, requests()[4]):
        assert piece.completion is None
        break
    assert not engine.busy


def test_generate_keeps_the_order_and_spreads_the_seed() -> None:
    texts = ["the cat", "天", "the cat"]
    done = generate(tiny_model(), texts, tiny_tokenizer(), max_new_tokens=8, seed=4, slots=2)
    assert [one.prompt_ids for one in done] == [document_prompt(text, tiny_tokenizer()) for text in texts]
    assert done[0].ids != done[2].ids
    again = generate(new_engine(3), texts, max_new_tokens=8, seed=[4, 5, 4])
    assert [one.ids for one in again[:2]] == [one.ids for one in done[:2]] and again[2].ids == again[0].ids
    with pytest.raises(UserError, match="tokenizer"):
        generate(tiny_model(), ["a"])


def test_a_bf16_copy_writes_nearly_the_same_and_follows_the_model() -> None:
    model = tiny_model(seed=8)
    engine = Engine(model, tiny_tokenizer(), slots=1, dtype=torch.bfloat16)
    assert engine.packed is not None and engine.packed.embedding.dtype == torch.bfloat16
    request = Request([5, 9], 1, stop_ids=(), temperature=0)
    before = run_one(engine, request).logprobs[0]
    fp32 = run_one(Engine(model, tiny_tokenizer(), slots=1), request).logprobs[0]
    assert before == pytest.approx(fp32, abs=0.1)
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        weight.mul_(0.0)
    try:
        assert run_one(engine, request).logprobs[0] == before
        engine.refresh()
        assert run_one(engine, request).logprobs[0] == pytest.approx(-torch.tensor(300.0).log().item(), abs=0.02)
    finally:
        tiny_model.cache_clear()


def test_defaults_are_written_for_other_runtimes_and_read_back(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    table = generation_config(tokenizer)
    assert table["eos_token_id"] == list(stop_ids(tokenizer)) == [tokenizer.im_end_id, tokenizer.eos_id]
    assert load_sampling(tmp_path) == CHAT
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(table))
    assert load_sampling(tmp_path) == CHAT
    path.write_text('{"temperature": 0.6, "top_k": 20, "top_p": null}')
    assert load_sampling(tmp_path) == Sampling(temperature=0.6, top_k=20)
    for bad in ("[]", "{", '{"top_k": 1.5}', '{"top_p": "much"}', '{"top_p": 3}'):
        path.write_text(bad)
        with pytest.raises(UserError):
            load_sampling(tmp_path)
