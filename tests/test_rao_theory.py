"""RAO's theory on a language small enough to enumerate.

Sequences are ``t0 x y1 y2`` over V tokens: a common first token, a prompt x and a response of two
tokens. A policy is a table of logits per prefix, which a head reads through one-hot hidden states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import torch
from torch import Tensor

from rao_kernels import SequenceBatch, fused_loss, rao_loss, sequence_and_prompt_logps
from rao_kernels.losses import LOSSES, fit_log_z0

from . import seeds

V = 4
BETA = 0.5
Prefix = tuple[int, ...]
PREFIXES: list[Prefix] = [
    (0, *rest) for n in range(3) for rest in itertools.product(range(V), repeat=n)
]
SENTENCES: list[Prefix] = [(0, *rest) for rest in itertools.product(range(V), repeat=3)]


@dataclass(frozen=True)
class Language:
    """A reference policy and a reward for every sentence, as Python floats."""

    reference: dict[Prefix, list[float]]
    rewards: dict[Prefix, float]

    def reference_logp(self, sentence: Prefix, after: int = 1) -> float:
        """Log-probability of ``sentence[after:]`` given what stands before."""
        return math.fsum(
            math.log(self.reference[sentence[:i]][sentence[i]]) for i in range(after, len(sentence))
        )

    def partition(self, prefix: Prefix) -> float:
        """Z(prefix) = sum over completions of pi_ref(completion | prefix) exp(r / beta)."""
        return math.fsum(
            math.exp(self.reference_logp(s, len(prefix)) + self.rewards[s] / BETA)
            for s in SENTENCES
            if s[: len(prefix)] == prefix
        )

    def optimal(self) -> dict[Prefix, float]:
        """pi_ref(sentence) exp(r / beta) / Z(t0), built from whole sequences only."""
        total = self.partition((0,))
        return {
            s: math.exp(self.reference_logp(s) + self.rewards[s] / BETA) / total for s in SENTENCES
        }

    def optimal_tables(self) -> dict[Prefix, list[float]]:
        """The optimal policy's next-token distributions, as marginals of whole sequences."""
        optimal = self.optimal()

        def mass(prefix: Prefix) -> float:
            return math.fsum(p for s, p in optimal.items() if s[: len(prefix)] == prefix)

        return {p: [mass((*p, token)) / mass(p) for token in range(V)] for p in PREFIXES}


def make_language(generator: torch.Generator) -> Language:
    logits = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64)
    rewards = torch.randn(len(SENTENCES), generator=generator, dtype=torch.float64)
    return Language(
        dict(zip(PREFIXES, logits.softmax(-1).tolist(), strict=True)),
        dict(zip(SENTENCES, rewards.tolist(), strict=True)),
    )


def head_of(tables: dict[Prefix, list[float]], dtype: torch.dtype = torch.float64) -> Tensor:
    """``[V, D]``: column d holds the logits after prefix d."""
    logits = torch.tensor([tables[p] for p in PREFIXES], dtype=torch.float64).log()
    return logits.T.to(dtype)


def hidden_states(dtype: torch.dtype = torch.float64) -> Tensor:
    """``[B, T, D]`` one-hot prefixes; nothing is predicted after the last token."""
    where = [[PREFIXES.index(s[: i + 1]) for i in range(3)] for s in SENTENCES]
    states = torch.nn.functional.one_hot(torch.tensor(where), len(PREFIXES))
    return torch.nn.functional.pad(states, (0, 0, 0, 1)).to(dtype)


def sentences() -> SequenceBatch:
    ids = torch.tensor(SENTENCES)
    mask = torch.tensor([0, 0, 1, 1]).expand_as(ids)
    return SequenceBatch.from_padded(ids, mask, groups=ids[:, 1].contiguous())


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Problems this small are not worth waking a second thread, which a busy machine delays."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def language() -> Language:
    """The one whose numbers docs/rao.md has, the same whatever `--seed` says."""
    return make_language(seeds.fixed_generator())


@pytest.mark.parametrize("seed", range(3))
def test_prefix_consistency(seed: int) -> None:
    """Z(prefix + token) / Z(prefix) = pi(token | prefix) / pi_ref(token | prefix)."""
    language = make_language(seeds.generator(seed))
    tables = language.optimal_tables()
    for prefix in PREFIXES:
        for token in range(V):
            grown = language.partition((*prefix, token)) / language.partition(prefix)
            ratio = tables[prefix][token] / language.reference[prefix][token]
            assert grown == pytest.approx(ratio, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("term", ["detached", "grad"])
def test_residuals_vanish_at_the_optimal_policy(
    seed: int, term: Literal["detached", "grad"]
) -> None:
    language = make_language(seeds.generator(seed))
    hidden, batch = hidden_states(), sentences()
    reference = sequence_and_prompt_logps(hidden, head_of(language.reference), batch)
    rewards = torch.tensor(list(language.rewards.values()), dtype=torch.float64)
    log_z0 = math.log(language.partition((0,)))

    def residual(level: float) -> float:
        out = rao_loss(
            hidden,
            head_of(language.optimal_tables()),
            batch,
            rewards=rewards,
            ref_logps=reference[0],
            ref_prompt_logps=reference[1],
            beta=BETA,
            log_z0=level,
            prompt_term=term,
        )
        return out.metrics["rao/residual_abs_max"].item()

    assert residual(log_z0) < 1e-12
    # No other reading of Z0 has a zero here: not the linear value, nor reward units.
    assert residual(math.exp(log_z0)) > 0.1
    assert residual(BETA * log_z0) > 0.1


def kullback_leibler(language: Language, weight: Tensor) -> float:
    """KL of the optimal policy from the head's, over all sentences."""
    logps = torch.log_softmax(hidden_states() @ weight.detach().double().T, dim=-1)
    ids = torch.tensor(SENTENCES)[:, 1:, None]
    policy = logps[:, :3].gather(-1, ids).sum((1, 2)).tolist()
    pairs = zip(language.optimal().values(), policy, strict=True)
    return math.fsum(p * (math.log(p) - q) for p, q in pairs)


def trained(
    language: Language,
    term: Literal["detached", "grad"],
    log_z0: float,
    start: dict[Prefix, list[float]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, float]:
    """The head after descent, from the reference unless told, and the gradient's norm there."""
    hidden, batch = hidden_states(dtype), sentences()
    reference = sequence_and_prompt_logps(hidden, head_of(language.reference, dtype), batch)
    weight = head_of(start or language.reference, dtype).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=1.0, momentum=0.9)
    for _ in range(300):
        loss = rao_loss(
            hidden,
            weight,
            batch,
            rewards=torch.tensor(list(language.rewards.values()), dtype=dtype),
            ref_logps=reference[0],
            ref_prompt_logps=reference[1],
            beta=BETA,
            log_z0=log_z0,
            prompt_term=term,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert weight.grad is not None
    return weight, float(weight.grad.norm())


@pytest.mark.parametrize("term", ["detached", "grad"])
def test_descent_reaches_the_optimal_policy(
    language: Language, term: Literal["detached", "grad"]
) -> None:
    """Eq. 8 trains whole sequences from the reference. Algorithm 1 trains responses only: it
    starts where prompts are already distributed as the optimal policy has them."""
    start = dict(language.reference)
    if term == "detached":
        start[(0,)] = language.optimal_tables()[(0,)]
    log_z0 = math.log(language.partition((0,)))
    assert kullback_leibler(language, head_of(start)) > 0.3
    weight, _ = trained(language, term, log_z0, start, torch.float32)
    assert kullback_leibler(language, weight) < 1e-4


# What Z0 is taken to be, and where training ends with it.


def prompt_divergence(language: Language, weight: Tensor) -> float:
    """The part of `kullback_leibler` that is of the prompts' distribution after t0."""
    policy = torch.log_softmax(weight.detach().double()[:, PREFIXES.index((0,))], 0).tolist()
    optimal = language.optimal_tables()[(0,)]
    return math.fsum(p * (math.log(p) - q) for p, q in zip(optimal, policy, strict=True))


def sampled_rewards(language: Language, count: int, seed: int = 0) -> Tensor:
    """Rewards of whole sequences that the reference writes."""
    probabilities = torch.tensor([math.exp(language.reference_logp(s)) for s in SENTENCES])
    generator = seeds.generator(seed)
    drawn = torch.multinomial(probabilities, count, replacement=True, generator=generator)
    return torch.tensor(list(language.rewards.values()), dtype=torch.float64)[drawn]


@pytest.mark.parametrize("seed", range(3))
def test_estimates_of_log_z0(seed: int) -> None:
    """Of samples from the reference, "logmeanexp" converges to log Z0 and "auto" stays below."""
    language = make_language(seeds.generator(seed))
    rewards = sampled_rewards(language, 20_000, seed)
    truth = math.log(language.partition((0,)))
    scaled = (rewards / BETA).exp()
    standard_error = float(scaled.std() / scaled.mean() / len(scaled) ** 0.5)
    found = float(fit_log_z0(rewards, BETA, method="logmeanexp"))
    assert found == pytest.approx(truth, abs=5 * standard_error)
    assert fit_log_z0(rewards, BETA) < truth - 5 * standard_error


def test_estimates_count_every_prompt_the_same() -> None:
    rewards, groups = torch.tensor([1.0, 3.0, -1.0]), torch.tensor([7, 7, 2])
    assert float(fit_log_z0(rewards, 0.5, groups)) == pytest.approx((2 - 1) / 2 / 0.5)
    expected = math.log(((math.exp(2) + math.exp(6)) / 2 + math.exp(-2)) / 2)
    found = float(fit_log_z0(rewards, 0.5, groups, "logmeanexp"))
    assert found == pytest.approx(expected, rel=1e-12)
    assert math.isfinite(float(fit_log_z0(1e3 * rewards, 1e-3, groups, "logmeanexp")))


def test_algorithm_1_stalls_at_the_prompts_of_the_reference(language: Language) -> None:
    """Nothing moves the prompts' distribution where no weight is shared with the responses: the
    prompt's log-ratio stays 0, and the responses fit targets that no distribution meets."""
    log_z0 = math.log(language.partition((0,)))
    start = head_of(language.reference)
    assert log_z0 == pytest.approx(1.705, abs=1e-3)
    assert kullback_leibler(language, start) == pytest.approx(1.693, abs=1e-3)
    weight, gradient = trained(language, "detached", log_z0)
    assert gradient < 1e-6, "it ends in a stationary point"
    assert prompt_divergence(language, weight) == pytest.approx(prompt_divergence(language, start))
    assert prompt_divergence(language, weight) == pytest.approx(0.583, abs=1e-3)
    assert kullback_leibler(language, weight) == pytest.approx(0.712, abs=1e-3)
    weight, _ = trained(language, "grad", log_z0)
    assert kullback_leibler(language, weight) < 1e-6


@pytest.mark.parametrize(("term", "expected"), [("grad", 0.293), ("detached", 0.928)])
def test_where_training_ends_with_auto(
    language: Language, term: Literal["detached", "grad"], expected: float
) -> None:
    """A bound, not log Z0: training ends elsewhere."""
    rewards = torch.tensor(list(language.rewards.values()), dtype=torch.float64)
    estimate = float(fit_log_z0(rewards, BETA, sentences().groups))
    assert estimate == pytest.approx(0.187, abs=1e-3)
    weight, _ = trained(language, term, estimate)
    assert kullback_leibler(language, weight) == pytest.approx(expected, abs=1e-3)


def test_where_training_ends_with_logmeanexp_of_samples(language: Language) -> None:
    estimate = fit_log_z0(sampled_rewards(language, 4096), BETA, method="logmeanexp")
    weight, _ = trained(language, "grad", float(estimate))
    assert kullback_leibler(language, weight) < 0.02


# Theorem 3.1.


@pytest.mark.parametrize("seed", range(3))
def test_many_rewards_agree_on_the_data_and_differ_in_z0(seed: int) -> None:
    """Theorem 3.1: rewards that keep their values on the data and their order everywhere, of which
    each has another Z0 (Eq. 18). Each one's optimal policy fits the data's rewards exactly, with
    its own Z0: on the data alone, every number of a range is a valid Z0."""
    language = make_language(seeds.generator(seed))
    generator = seeds.generator(seed)
    ordered = sorted(SENTENCES, key=language.rewards.__getitem__)
    # Neither the best nor the worst sentence is in the data.
    data = [ordered[i] for i in (torch.randperm(len(ordered) - 8, generator=generator) + 4)[:24]]
    low, high = (f(language.rewards[s] for s in data) for f in (min, max))

    def stretched(above: float, below: float) -> Language:
        def change(r: float) -> float:
            if r > high:
                return above * (r - high) + high
            return low - below * (low - r) if r < low else r

        return Language(language.reference, {s: change(r) for s, r in language.rewards.items()})

    levels = []
    for above, below in [(0.1, 3.0), (0.5, 1.0), (1.0, 1.0), (2.0, 0.5), (4.0, 0.1)]:
        other = stretched(above, below)
        assert all(other.rewards[s] == language.rewards[s] for s in data)
        assert sorted(SENTENCES, key=other.rewards.__getitem__) == ordered
        level = math.log(other.partition((0,)))
        optimal = other.optimal()
        for s in data:
            ratio = math.log(optimal[s]) - other.reference_logp(s)
            assert BETA * (ratio + level) == pytest.approx(language.rewards[s], abs=1e-12)
        levels.append(level)
    assert all(b > a + 1e-3 for a, b in itertools.pairwise(levels))


# One prompt ``0 1`` with two responses of one token each, 2 preferred to 3.


def two_answers() -> SequenceBatch:
    ids = torch.tensor([[0, 1, 2], [0, 1, 3]])
    mask = torch.tensor([[0, 0, 1]]).expand_as(ids)
    return SequenceBatch.from_padded(ids, mask, groups=torch.tensor([0, 0]))


def test_the_level_moves_with_log_z0_and_the_gap_with_beta() -> None:
    """At zero loss D = r / beta - log_z0. It is quadratic: one step of 1 / beta^2 is there."""
    batch = two_answers()
    rewards = torch.tensor([1.0, -0.5], dtype=torch.float64)
    zero = torch.zeros(2, dtype=torch.float64)
    for beta, log_z0 in [(0.5, 0.0), (0.5, 4.0), (0.1, 4.0)]:
        logps = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        given = {"rewards": rewards, "ref_logps": zero, "ref_prompt_logps": zero}
        loss = LOSSES["rao"](batch.loss_inputs(logps, **given), beta=beta, log_z0=log_z0).loss
        (grad,) = torch.autograd.grad(loss, logps)
        fitted = LOSSES["rao"](
            batch.loss_inputs(logps - grad / beta**2, **given), beta=beta, log_z0=log_z0
        )
        assert fitted.loss.item() == pytest.approx(0, abs=1e-20)
        metrics = {name: value.item() for name, value in fitted.metrics.items()}
        assert metrics["rewards/chosen"] == pytest.approx(1 - beta * log_z0)
        assert metrics["rewards/margins"] == pytest.approx(1.5)
        gap = metrics["logps/chosen"] - metrics["logps/rejected"]
        assert gap == pytest.approx(1.5 / beta)


def test_preferred_falls_under_dpo_and_rises_under_rao() -> None:
    """Both tokens lie on one side of the state: away from the rejected is away from the preferred.

    DPO only asks for a gap and pays for it with a third token; RAO asks for a level as well.
    """
    batch = two_answers()
    weight = torch.tensor(
        [[-3.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 1.0, 1.0], [3.0, 1.0, -1.0]],
        dtype=torch.float64,
    )
    start = torch.zeros(2, 3, 3, dtype=torch.float64)
    ref_logps, ref_prompt_logps = sequence_and_prompt_logps(start, weight, batch)
    given = {
        "rewards": torch.tensor([1.0, -1.0], dtype=torch.float64),
        "preferred": torch.tensor([True, False]),
        "ref_logps": ref_logps,
        "ref_prompt_logps": ref_prompt_logps,
    }

    def moved(name: str, hyper: dict[str, float]) -> float:
        """Change of the preferred response's log-prob after descent on the one hidden state."""
        state = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.SGD([state], lr=0.02)
        for _ in range(200):
            hidden = state.expand(2, 3, 3)
            out = fused_loss(name, hidden, weight, batch, inputs=given, hyper=hyper)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        return (out.metrics["logps/chosen"] - ref_logps[0]).item()

    assert moved("sigmoid", {"beta": 1.0}) < -0.05
    assert moved("rao", {"beta": 1.0, "log_z0": 0.0}) > 0.05
