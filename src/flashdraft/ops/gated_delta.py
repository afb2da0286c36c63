"""The gated delta rule (Gated Delta Networks, arXiv 2412.06464, equation 10): a memory with decay and overwriting.

    S_t = exp(decay_t) S_{t-1} + beta_t k_t (v_t - k_t^T exp(decay_t) S_{t-1})^T,    out_t = q_t^T S_t

Two forms of one function: token by token, whose bits do not depend on how a text is cut into forwards, and by
chunks, which is fast on long texts and agrees up to rounding.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64  # tokens; forwards up to this long run token by token


@dataclass(frozen=True)
class DeltaInputs:
    """What a forward feeds to the rule, float32; queries and keys unit-long, queries scaled."""

    q: Tensor  # [rows, num_tokens, heads, key_dim]
    k: Tensor  # the same
    v: Tensor  # [rows, num_tokens, heads, value_dim]
    decay: Tensor  # [rows, num_tokens, heads], logarithms, at most 0
    beta: Tensor  # [rows, num_tokens, heads], 0 to 1

    def part(self, row: slice, tokens: slice) -> "DeltaInputs":
        """Some rows and tokens."""
        return DeltaInputs(*(x[row, tokens] for x in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """All of them, in order."""
        return self.q, self.k, self.v, self.decay, self.beta


def unit_length(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``x / sqrt(sum(x^2) + eps)`` over the last dimension, as flash-linear-attention's l2norm."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


def gated_delta_reference(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The rule token by token: outputs [rows, num_tokens, heads, value_dim] and the state after the last.

    ``state`` [rows, heads, key_dim, value_dim] is left as it is.
    """
    outputs = torch.empty_like(inputs.v)
    for t in range(inputs.v.shape[1]):
        k = inputs.k[:, t].unsqueeze(-1)
        state = state * inputs.decay[:, t].exp()[..., None, None]
        missing = (inputs.v[:, t] - (state * k).sum(-2)) * inputs.beta[:, t].unsqueeze(-1)
        state = state + k * missing.unsqueeze(-2)
        outputs[:, t] = (state * inputs.q[:, t].unsqueeze(-1)).sum(-2)
    return outputs, state


def gated_delta_trees(inputs: DeltaInputs, state: Tensor, depths: Tensor, parents: Tensor) -> Tensor:
    """The rule down every path of trees, a token with the bits that its path alone gives it; shapes as above.

    ``depths`` [rows, num_tokens] from the roots, which stand first; ``parents`` [rows, num_tokens]: places of the
    tokens that each follows. All tokens of one depth are one step, and only the states of the last one are held.
    """
    outputs, number = torch.empty_like(inputs.v), torch.zeros_like(depths)
    for depth in range(int(depths.max()) + 1):
        at = rows, places = (depths == depth).nonzero(as_tuple=True)
        before = number[rows, parents[at]] if depth else rows
        number[at] = torch.arange(len(rows), device=rows.device)
        level = DeltaInputs(*(x[at].unsqueeze(1) for x in inputs.tensors))
        out, state = gated_delta_reference(level, state[before])
        outputs[rows, places] = out.squeeze(1)
    return outputs


def gated_delta_chunked(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same by chunks: what a chunk writes is the solution of one triangular system (section 3.3)."""
    outputs = torch.empty_like(inputs.v)
    for start in range(0, inputs.v.shape[1], CHUNK):
        tokens = slice(start, start + CHUNK)
        chunk = inputs.part(slice(None), tokens)
        out, state = _chunk(chunk, state)
        outputs[:, tokens] = out.transpose(1, 2)
    return outputs, state


def _chunk(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    q, k, v, decay, beta = (
        x.transpose(1, 2) for x in (inputs.q, inputs.k, inputs.v, inputs.decay, inputs.beta)
    )
    # Differences of long sums: float32 would lose what stands behind a strong decay.
    total = decay.double().cumsum(-1)  # [rows, heads, num_tokens]: decay since the chunk's start
    between = (
        (total.unsqueeze(-1) - total.unsqueeze(-2)).tril().float().exp().tril()
    )  # [.., i, j]: from j to i
    since_start = total.float().exp().unsqueeze(-1)
    system = beta.unsqueeze(-1) * between * (k @ k.transpose(-1, -2))
    wanted = beta.unsqueeze(-1) * (v - since_start * (k @ state))
    written = torch.linalg.solve_triangular(system, wanted, upper=False, unitriangular=True)
    out = since_start * (q @ state) + (between * (q @ k.transpose(-1, -2))) @ written
    to_end = (total[..., -1:] - total).float().exp().unsqueeze(-1)
    state = state * since_start[..., -1:, :] + (k * to_end).transpose(-1, -2) @ written
    return out, state


def gated_delta(inputs: DeltaInputs, state: Tensor) -> tuple[Tensor, Tensor]:
    """The form that suits the length; shapes as in :func:`gated_delta_reference`."""
    form = gated_delta_reference if inputs.v.shape[1] <= CHUNK else gated_delta_chunked
    return form(inputs, state)


def takes_fla(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether flash-linear-attention's kernels run for a network of ``dtype``: in 16 bits, on CUDA, where installed."""
    return device.type == "cuda" and dtype != torch.float32 and find_spec("fla") is not None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def gated_delta_texts(inputs: DeltaInputs, dtype: torch.dtype) -> Tensor:
    """Outputs [rows, num_tokens, heads, value_dim] of texts from their first token on, for a network of ``dtype``.

    Not compiled: a text's chunks would be unrolled one by one.
    """
    if takes_fla(dtype, inputs.v.device):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        q, k, v = (x.to(dtype) for x in (inputs.q, inputs.k, inputs.v))
        out: Tensor = chunk_gated_delta_rule(q, k, v, inputs.decay, inputs.beta, scale=1.0)[0]
        return out
    rows, _, heads, key_dim = inputs.k.shape
    state = inputs.v.new_zeros(rows, heads, key_dim, inputs.v.shape[-1])
    return gated_delta(inputs, state)[0]


def decay_logarithm(a: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
    """``-exp(A_log) softplus(a + dt_bias)``, float32: how a token's gate ``a`` [..., heads] fades the state."""
    return -a_log.float().exp() * F.softplus(a.float() + dt_bias.float())
