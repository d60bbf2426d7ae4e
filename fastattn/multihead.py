"""Multi-head attention as a module: projections, heads, fused attention, output projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn import parameters as stored
from fastattn import projections
from fastattn._core import names
from fastattn._core.arrays import flag
from fastattn._core.environment import default_environment
from fastattn.parameters import Sizes

if TYPE_CHECKING:
    import os

    from numpy.typing import DTypeLike

    from fastattn._core.annotations import ArrayLike, BackendName, Causal, Rotate, Window

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention:
    r"""Attend with several heads, each with its own projections; inference on NumPy arrays.

    .. math::

        \mathrm{head}_h = \mathrm{attention}(x_q W^q_h + b^q_h,\ x_k W^k_h + b^k_h,\
        x_v W^v_h + b^v_h), \quad
        y = \mathrm{concat}(\mathrm{head}_1, \dots, \mathrm{head}_H)\, W^o + b^o

    Equal to PyTorch's `nn.MultiheadAttention` in evaluation mode, to rounding. Make one with
    `from_module`, `from_state_dict`, `from_safetensors` or `from_arrays`; the constructor itself
    draws random weights from the distributions that PyTorch draws from.

    Parameters
    ----------
    embed_dim : int
        Features of queries and outputs.
    num_heads : int
        Heads H; divides `embed_dim`.
    kdim, vdim : int, optional
        Features of keys and values. None: `embed_dim`.
    bias : bool
        Projections have biases.
    add_bias_kv : bool
        One more key and value, the same for every sequence and learned, which every query sees.
    add_zero_attn : bool
        One more key and value of zeros, which every query sees.
    dtype : {float32, float64, float16, bfloat16}
        Of the weights.
    seed : int, optional
        Of the random weights. None: others each time.

    Raises
    ------
    ValueError, TypeError
        If a size is no positive integer, heads do not divide it, or the dtype is another one.

    Notes
    -----
    Sequences come as ``(..., length, features)``: PyTorch's with ``batch_first=True``, and any
    number of batch dims. Masks here say who *may* attend, PyTorch's who may not:

    ==================================================  ======================================
    PyTorch                                             here
    ==================================================  ======================================
    ``attn_mask`` (L, S), bool                          ``mask=~attn_mask``
    ``attn_mask`` (N * H, L, S), bool                   ``mask=~attn_mask.reshape(N, H, L, S)``
    ``key_padding_mask`` (N, S), bool                   ``mask=~key_padding_mask[:, None, None]``
    padding behind the first n keys                     ``key_lengths=n`` (N,), faster
    float masks                                         the same, without ``~``
    both masks                                          ``&`` of bools, ``+`` of floats
    ``is_causal=True`` with its mask                    ``causal=True``, no mask needed
    ``need_weights=False``                              the default
    ``need_weights=True, average_attn_weights=True``    ``return_weights=True,
                                                        average_weights=True``
    ==================================================  ======================================

    A query that sees no key gets the output projection's bias, where PyTorch gives NaN.

    The projections are those of `linear`, so all that `attention` promises of its bits holds here:
    an output row depends on its query, the keys and values it sees and their positions, not on
    batch, threads or layout. float16 and bfloat16 are computed in float32 and rounded once, at the
    end. The weights are kept packed, halves as float32, and so alone: `state_dict` makes copies.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, section 3.2.2.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> module = fastattn.MultiHeadAttention(embed_dim=64, num_heads=4, seed=0)
    >>> x = np.random.default_rng(0).standard_normal((2, 10, 64), dtype=np.float32)
    >>> module(x, causal=True).shape
    (2, 10, 64)
    >>> output, weights = module(x, key_lengths=[10, 7], return_weights=True)
    >>> weights.shape, float(weights[1, :, :, 7:].max())
    ((2, 4, 10, 10), 0.0)

    With PyTorch's weights, which may also come from a file (`from_safetensors`):

    >>> state = module.state_dict()                     # or torch_module.state_dict()
    >>> same = fastattn.MultiHeadAttention.from_state_dict(state, num_heads=4)
    >>> np.array_equal(same(x), module(x))
    True

    Llama's rotary embedding, in which the halves of a head are real and imaginary parts:

    >>> def turned(x, theta=10000.0):
    ...     real, imaginary = np.split(x, 2, axis=-1)
    ...     speeds = theta ** -np.linspace(0, 1, real.shape[-1], endpoint=False)
    ...     angles = np.arange(x.shape[-2])[:, None] * speeds
    ...     cos, sin = np.cos(angles), np.sin(angles)
    ...     return np.concatenate([real * cos - imaginary * sin, imaginary * cos + real * sin], -1)
    >>> module(x, causal=True, rotate=lambda query, key: (turned(query), turned(key))).dtype
    dtype('float32')
    """

    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kdim: int
    vdim: int
    add_zero_attn: bool

    @names.closed
    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            names.refuse(MultiHeadAttention.__init__, unknown)
        sizes = Sizes.given(embed_dim, kdim, vdim, bias, add_bias_kv)
        drawn = projections.draw(sizes, np.dtype(dtype), seed)
        self._set(stored.from_state(drawn, num_heads), add_zero_attn)

    @classmethod
    def _of(cls, given: stored.Given, add_zero_attn: bool, **more: Any) -> MultiHeadAttention:
        module = cls.__new__(cls)
        module._set(given, add_zero_attn, **more)
        return module

    def _set(self, given: stored.Given, add_zero_attn: bool, **more: Any) -> None:
        self.add_zero_attn = flag("add_zero_attn", add_zero_attn)
        self._maps = projections.Maps.of(given, self.add_zero_attn, **more)
        self.embed_dim, self.kdim, self.vdim = self._maps.widths()
        self.num_heads, self.num_kv_heads, self.head_dim = self._maps.heads()

    @classmethod
    def from_state_dict(
        cls,
        state: Mapping[str, Any],
        num_heads: int,
        *,
        prefix: str = "",
        add_zero_attn: bool = False,
    ) -> MultiHeadAttention:
        """Take weights by the names they have in PyTorch, which is not needed for it, or in models.

        Parameters
        ----------
        state : mapping of str to tensor or array
            ``module.state_dict()``. Tensors may be on any device, in any float dtype; bfloat16
            becomes float32, with the same numbers, where ml_dtypes is not installed.
        num_heads : int
            Heads of queries, which no state dict holds. Those of keys may be fewer: the rows of
            their weights tell how many.
        prefix : str
            What the names of this module begin with: ``"encoder.layers.0.self_attn."``,
            ``"bert.encoder.layer.0.attention."``, ``"model.layers.0.self_attn."``; names that begin
            otherwise are left alone.
        add_zero_attn : bool
            ``module.add_zero_attn``, which no state dict holds.

        Returns
        -------
        module : MultiHeadAttention
            With copies of the weights, in their dtype.

        Raises
        ------
        ValueError
            If an entry is missing, one too many, or of another shape than the others ask for, or
            `num_heads` does not divide them.
        TypeError
            If `state` is no mapping of names to arrays of real numbers.

        Notes
        -----
        The names are those of `nn.MultiheadAttention`, or of BERT, ViT, DistilBERT, BART (CLIP,
        Whisper) and Llama (Mistral, Qwen). Of BERT the LayerNorm that stands beside is left out.
        What no weight says is up to the calls: masks, and the rotary embedding of Llama, without
        which a call is refused (`rotate`). A scale other than ``1 / sqrt(head_dim)``, a softcap
        and sinks are not part of the module.
        """
        return cls._of(stored.from_state(state, num_heads, prefix), add_zero_attn)

    @classmethod
    def from_safetensors(
        cls,
        path: str | os.PathLike[str],
        num_heads: int,
        *,
        prefix: str = "",
        add_zero_attn: bool = False,
    ) -> MultiHeadAttention:
        """Take the weights from a safetensors file, as `from_state_dict` does from a mapping.

        Parameters
        ----------
        path : str or path
            Only what begins with `prefix` is read.
        num_heads, prefix, add_zero_attn
            As for `from_state_dict`.

        Returns
        -------
        module : MultiHeadAttention
            With the weights in their dtype.

        Raises
        ------
        ImportError
            If safetensors is not installed, or ml_dtypes where the file holds bfloat16.
        OSError
            If the file cannot be opened.
        ValueError
            If it is no whole safetensors file, and as for `from_state_dict`.
        """
        state = stored.from_file(path, prefix)
        return cls.from_state_dict(state, num_heads, prefix=prefix, add_zero_attn=add_zero_attn)

    @classmethod
    def from_arrays(
        cls,
        num_heads: int,
        *,
        query_weight: ArrayLike,
        key_weight: ArrayLike,
        value_weight: ArrayLike,
        output_weight: ArrayLike,
        query_bias: ArrayLike | None = None,
        key_bias: ArrayLike | None = None,
        value_bias: ArrayLike | None = None,
        output_bias: ArrayLike | None = None,
        added_key: ArrayLike | None = None,
        added_value: ArrayLike | None = None,
        add_zero_attn: bool = False,
    ) -> MultiHeadAttention:
        """Take the weights from one array each.

        Parameters
        ----------
        num_heads : int
            Heads H; head h has the rows ``h * head_dim`` to ``(h + 1) * head_dim``.
        query_weight, key_weight, value_weight : array_like, (heads * head_dim, input features)
            A row per output feature: projected are ``x @ weight.T``. Of a Keras kernel of shape
            (features, heads, head_dim) it is ``kernel.reshape(features, -1).T``. Keys and values
            may have fewer heads, as many as divide H.
        output_weight : array_like, (embed_dim, H * head_dim)
            Likewise.
        query_bias, key_bias, value_bias, output_bias : array_like, (rows of the weight,), optional
            None: zeros.
        added_key, added_value : array_like, (embed_dim,), optional
            One more key and value that every query sees, already projected. None: there is none.
        add_zero_attn : bool
            One more key and value of zeros.

        Returns
        -------
        module : MultiHeadAttention
            With copies of the weights, in their dtype.

        Raises
        ------
        ValueError
            If a shape does not fit ``output_weight``, or one of `added_key` and `added_value` is
            missing.
        TypeError
            If an array is complex, extended precision, object, masked, sparse or lazy.
        """
        arrays = {"query_weight": query_weight, "query_bias": query_bias}
        arrays |= {"key_weight": key_weight, "key_bias": key_bias, "added_key": added_key}
        arrays |= {"value_weight": value_weight, "value_bias": value_bias}
        arrays |= {"output_weight": output_weight, "output_bias": output_bias}
        arrays |= {"added_value": added_value}
        return cls._of(stored.from_parts(arrays, num_heads), add_zero_attn)

    @classmethod
    def from_module(cls, module: Any) -> MultiHeadAttention:
        """Take over a `torch.nn.MultiheadAttention` as it computes in evaluation mode.

        Parameters
        ----------
        module : torch.nn.MultiheadAttention
            With any of its options. One that is not ``batch_first`` makes one that takes and gives
            ``(length, batch, features)`` too. Other modules are taken by `from_state_dict`.

        Returns
        -------
        module : MultiHeadAttention
            With copies of the weights, in their dtype.

        Raises
        ------
        TypeError
            If it is another module.
        ValueError
            If it computes otherwise than its weights say: in a forward of its own, with hooks, or
            dropping weights while it trains.
        """
        state, heads, zero, batch_first = stored.from_module(module)
        return cls._of(stored.from_state(state, heads), zero, batch_first=batch_first)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return the weights by the names they have in PyTorch; read-only copies.

        Those of grouped heads, and of heads of another width than ``embed_dim / num_heads``, which
        PyTorch's module has not, have the names of Llama, or without its rotations of BART.
        """
        state = stored.named(self._maps.given())
        for x in state.values():
            x.flags.writeable = False
        return state

    def __repr__(self) -> str:
        grouped = f", {self.num_kv_heads} of keys" * (self.num_kv_heads != self.num_heads)
        widths = {self.embed_dim, self.kdim, self.vdim}
        told = f", kdim={self.kdim}, vdim={self.vdim}" * (len(widths) > 1)
        return (
            f"<MultiHeadAttention {self.embed_dim}, {self.num_heads} heads of {self.head_dim}"
            f"{grouped}{told}, {self._maps.dtype}>"
        )

    @names.closed
    @default_environment()
    def __call__(
        self,
        query: ArrayLike,
        key: ArrayLike | None = None,
        value: ArrayLike | None = None,
        *,
        mask: ArrayLike | None = None,
        causal: Causal = False,
        query_offset: ArrayLike | None = None,
        window: Window | None = None,
        key_lengths: ArrayLike | None = None,
        rotate: Rotate | None = None,
        return_weights: bool = False,
        average_weights: bool = False,
        out: np.ndarray | None = None,
        backend: BackendName | None = None,
        threads: int | None = None,
        **unknown: Never,
    ) -> Any:
        """Attend.

        Parameters
        ----------
        query : array_like, (..., L, embed_dim)
            One row per query.
        key : array_like, (..., S, kdim), optional
            One row per key; batch dims broadcast. None: the queries attend to themselves.
        value : array_like, (..., S, vdim), optional
            One row per key. None: `key`.
        mask : array_like, broadcasts to (..., H, L, S), optional
            bool: True where a query may attend; float: added to the scores. A mask per sequence
            is ``mask[:, None]``, since heads are its axis -3.
        causal, window
            As for `attention`.
        query_offset, key_lengths : int or int array over the batch dims, optional
            As for `attention`, without a dim for heads: one number per sequence.
        rotate : function of (query, key), optional
            Gets the heads of queries (..., H, L, head_dim) and of keys (..., Hkv, S, head_dim)
            before they are compared, and returns both turned by their positions: a rotary
            embedding, which no weights hold. Weights by the names of Llama need one.
        return_weights : bool
            Return the weights too.
        average_weights : bool
            Their mean over the heads; only with `return_weights`.
        out : ndarray, (..., L, embed_dim), optional
            Where to store the output; may overlap an input. None: a new array.
        backend, threads
            As for `attention`.

        Returns
        -------
        output : ndarray, (..., L, embed_dim)
            Of the dtype to which the inputs and the weights promote.
        weights : ndarray, (..., H, L, S) or (..., L, S)
            Only with `return_weights`. Behind the S keys stand, as in PyTorch, the key of
            `add_bias_kv` and that of `add_zero_attn`, where the module has them.

        Raises
        ------
        ValueError, TypeError
            If shapes do not fit the module or each other, and where `attention` would.
        """
        if unknown:
            names.refuse(MultiHeadAttention.__call__, unknown)
        return projections.forward(
            self._maps,
            (query, key, value),
            rotate,
            out,
            return_weights=return_weights,
            average_weights=average_weights,
            mask=mask,
            causal=causal,
            query_offset=query_offset,
            window=window,
            key_lengths=key_lengths,
            backend=backend,
            threads=threads,
        )
