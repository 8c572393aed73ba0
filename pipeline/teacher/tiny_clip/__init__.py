"""A tiny CLIP of our own, for machines without CLIP weights: depth views of synthetic objects against made-up captions.

`config` says what is trained, `views` draws the images once ahead, `captions` writes about them, `train` runs
open_clip's contrastive loss, `files` keeps what came out, `zero_shot` names shapes with it. How well it does:
pipeline/embedded/i2p-vit-tiny-16.md.
"""
