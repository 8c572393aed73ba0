"""A tiny CLIP of our own, for machines without CLIP weights: depth views of synthetic objects against made-up captions.

`config` holds the settings, `views` renders the images in advance, `captions` describes them, `train` runs open_clip's
contrastive loss, `files` saves the result, `zero_shot` classifies shapes with it. Its accuracy is reported in
pipeline/embedded/i2p-vit-tiny-16.md.
"""
