r"""A student learns the distribution of a teacher, token by token.

Every function takes logits of both over the same vocabulary and gives back one divergence a token, in nats. $p$ is the
teacher's distribution, $q$ the student's, both at temperature $T$: $p = \mathrm{softmax}(z / T)$.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def forward_kl(
    student: Float[Tensor, "*tokens vocab"], teacher: Float[Tensor, "*tokens vocab"], temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    r"""$\mathrm{KL}(p \,\|\, q) = \sum_v p_v (\log p_v - \log q_v)$: the student covers all that the teacher might say
    (Hinton et al., arXiv 1503.02531). A stage multiplies by $T^2$, so that gradients keep their size when $T$ changes.
    """
    return _kl(_log_softmax(teacher, temperature), _log_softmax(student, temperature))


def reverse_kl(
    student: Float[Tensor, "*tokens vocab"], teacher: Float[Tensor, "*tokens vocab"], temperature: float = 1.0
) -> Float[Tensor, "*tokens"]:
    r"""$\mathrm{KL}(q \,\|\, p)$: the student keeps to what the teacher would say (MiniLLM, arXiv 2306.08543)."""
    return _kl(_log_softmax(student, temperature), _log_softmax(teacher, temperature))


def jensen_shannon(
    student: Float[Tensor, "*tokens vocab"],
    teacher: Float[Tensor, "*tokens vocab"],
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    r"""Generalised Jensen-Shannon divergence of GKD (Agarwal et al., arXiv 2306.13649, equation 1).

    $$D_\beta = \beta\,\mathrm{KL}(p \,\|\, m) + (1 - \beta)\,\mathrm{KL}(q \,\|\, m), \qquad
      m = \beta p + (1 - \beta) q$$

    The limits are taken as TRL takes them: `beta` = 0 gives the forward KL, 1 the reverse. (Divided by $\beta$ or by
    $1 - \beta$ the divergence tends to them; itself it tends to 0.)
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}, must be between 0 and 1")
    if beta == 0:
        return forward_kl(student, teacher, temperature)
    if beta == 1:
        return reverse_kl(student, teacher, temperature)
    p, q = _log_softmax(teacher, temperature), _log_softmax(student, temperature)
    mixture = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
    return beta * _kl(p, mixture) + (1 - beta) * _kl(q, mixture)


def top_k_forward_kl(
    student: Float[Tensor, "*tokens vocab"],
    ids: Int[Tensor, "*tokens k"],
    teacher_logprobs: Float[Tensor, "*tokens k"],
    temperature: float = 1.0,
) -> Float[Tensor, "*tokens"]:
    r"""Forward KL from the teacher's `k` likeliest tokens alone, the rest of the vocabulary counted as one token.

    $$\sum_{v \in K} p_v \log\frac{p_v}{q_v} + p_{rest} \log\frac{p_{rest}}{q_{rest}}, \qquad
      p_{rest} = 1 - \sum_{v \in K} p_v$$

    `teacher_logprobs` are $\log p_v$ at the same temperature. By the log-sum inequality this is at most the KL over the
    whole vocabulary, and equal to it where both spread what is left in proportion: what is lost by keeping `k` numbers
    a token on disk is what the teacher thinks of tokens it would hardly say.
    """
    q = _log_softmax(student, temperature)
    chosen = q.gather(-1, ids)
    inside = (teacher_logprobs.exp() * (teacher_logprobs - chosen)).sum(-1)
    # The student's rest is summed up: one minus the chosen would leave little but rounding of a small one. Of the
    # teacher no more is known. At least 1e-7, since either may be nothing.
    p_rest = (1 - teacher_logprobs.exp().sum(-1)).clamp(min=1e-7)
    q_rest = q.exp().scatter(-1, ids, 0.0).sum(-1).clamp(min=1e-7)
    return inside + p_rest * (p_rest.log() - q_rest.log())


def _log_softmax(logits: Float[Tensor, "*tokens vocab"], temperature: float) -> Float[Tensor, "*tokens vocab"]:
    return F.log_softmax(logits.float() / temperature, -1)


def _kl(p: Float[Tensor, "*tokens vocab"], q: Float[Tensor, "*tokens vocab"]) -> Float[Tensor, "*tokens"]:
    return (p.exp() * (p - q)).sum(-1)
