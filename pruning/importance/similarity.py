"""How far a block turns the residual stream: Adapt-Pruner's metric, ShortGPT's block influence.

Shapes: B batch, T sequence, D hidden.
"""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pruning.models.adapter import Adapter


def block_importance(in_BTD: Tensor, out_BTD: Tensor) -> Tensor:
    """Mean over tokens of 1 - cos(in, out), fp32: high when the block changes the direction."""
    cosine_BT = torch.nn.functional.cosine_similarity(in_BTD.float(), out_BTD.float(), dim=-1)
    return (1 - cosine_BT).mean()


class StreamTurns:
    """`block_importance` of one decoder layer and its two blocks, each summed over batches."""

    def __init__(self, adapter: Adapter, layer: nn.Module) -> None:
        self.attention = self.mlp = self.layer = torch.zeros(())
        self._module = layer
        self._parallel = adapter.parallel
        self._attention = layer.get_submodule(adapter.family.attention)
        self._mlp_input = layer.get_submodule(adapter.family.mlp_input)
        self._mlp = layer.get_submodule(adapter.family.mlp)
        self._input_BTD: Tensor | None = None
        self._stream_BTD: Tensor | None = None

    def watch(self) -> list[RemovableHandle]:
        """Compare the residual stream before, between and after the layer's two blocks.

        Of parallel blocks, each by itself: what it reads, and that with what it writes.
        """
        if self._parallel:
            return [
                self._module.register_forward_pre_hook(self._enter),
                self._attention.register_forward_hook(self._add_attention),
                self._mlp.register_forward_hook(self._add_mlp),
                self._module.register_forward_hook(self._leave_parallel),
            ]
        return [
            self._module.register_forward_pre_hook(self._enter),
            self._mlp_input.register_forward_pre_hook(self._pass_middle),
            self._module.register_forward_hook(self._leave),
        ]

    def _enter(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._input_BTD = self._stream_BTD = args[0].detach()

    def _pass_middle(self, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.attention = self.attention + self._advance(args[0])

    def _leave(self, _module: nn.Module, _args: object, output_BTD: Tensor) -> None:
        self.mlp = self.mlp + self._advance(output_BTD)
        self._stream_BTD = self._input_BTD
        self.layer = self.layer + self._advance(output_BTD)
        self._stream_BTD = self._input_BTD = None

    def _add_attention(
        self, _module: nn.Module, _args: object, output: tuple[Tensor, object]
    ) -> None:
        self.attention = self.attention + self._turned_by(output[0])

    def _add_mlp(self, _module: nn.Module, _args: object, output_BTD: Tensor) -> None:
        self.mlp = self.mlp + self._turned_by(output_BTD)

    def _leave_parallel(self, _module: nn.Module, _args: object, output_BTD: Tensor) -> None:
        self.layer = self.layer + self._advance(output_BTD)
        self._input_BTD = self._stream_BTD = None

    @torch.no_grad()
    def _turned_by(self, written_BTD: Tensor) -> Tensor:
        assert self._input_BTD is not None
        return block_importance(self._input_BTD, self._input_BTD + written_BTD.detach()).cpu()

    @torch.no_grad()
    def _advance(self, stream_BTD: Tensor) -> Tensor:
        assert self._stream_BTD is not None
        importance = block_importance(self._stream_BTD, stream_BTD)
        self._stream_BTD = stream_BTD.detach()
        return importance.cpu()
