"""A student's heads for one further teacher."""

from torch import Tensor, nn

from trainer.models.layers.alignment_head import AlignmentHead
from trainer.models.layers.transformer import Pointwise
from trainer.models.student import Further, Said

__all__ = ["FurtherHeads"]


class FurtherHeads(nn.Module):
    """What a student has for its first teacher, under the same names, in this teacher's channels and views.

    decoded   width of the decoder's tokens.   members  K of a token.   top  width of the top level's tokens.
    features  whether the student predicts features at all.
    """

    def __init__(self, teacher: Further, *, decoded: int, members: int, top: int, features: bool):
        super().__init__()
        values = teacher.views * teacher.channels
        self.rec_head_2d = Pointwise(decoded, members * values) if features and teacher.features else None
        self.align_head = AlignmentHead(top, values) if teacher.whole else None

    def forward(self, visible: Tensor, top: Tensor, valid: Tensor | None) -> Said:
        """Predict what the teacher says.

        visible  [M, decoded] visible tokens after the decoder.   top  [B, L, top] the visible top tokens, padded.
        valid    [B, L] bool, which of them are tokens; None: all.
        """
        return Said(
            None if self.rec_head_2d is None else self.rec_head_2d(visible),
            None if self.align_head is None else self.align_head(top, valid),
        )
