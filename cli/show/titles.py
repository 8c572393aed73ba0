"""Names of encoders and losses in tables and pictures."""

__all__ = ["ENCODER_TITLES", "loss_title"]

ENCODER_TITLES = {
    "coordinates": "coordinate statistics",
    "untrained": "untrained encoder",
    "embedded": "the package's own encoder",
    "point-nn": "Point-NN (no weights)",
    "trained": "trained encoder",
    **{f"trained-{feature}": "trained encoder" for feature in ("levels", "top")},  # `i2p evaluate --feature all`
}
_LOSSES = {"3d": "3D loss (Chamfer)", "2d": "2D loss (MSE)", "global": "global loss (InfoNCE)"}


def loss_title(name: str) -> str:
    """The title of a loss, by its name in `trainer.losses.terms` or in a log, where `loss_` stands before it."""
    name = name.removeprefix("loss_")
    return _LOSSES.get(name, f"{name} loss")
