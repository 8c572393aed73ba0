"""What a further teacher's cache costs to read: CPU time a shape of batches from one cache, from another, from both.

    python -m benchmarks.bench_teachers

Made-up records of the embedded teacher's sizes (192 channels, patches of 16) and of a small DINOv2's (384, 14), read as
quickstart reads them, in one thread, the variants in turn.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import teacher_cache
from cli.experiment.toml import load_experiment
from teacher_cache import Cache, CacheConfig
from teacher_cache.format.records import CacheSchema
from teacher_cache.testing import make_recipe, make_record
from teacher_cache.writer import create_cache, write_shard
from trainer.engine.ranks import Ranks
from trainer.pretraining.data import Loader
from trainer.pretraining.joined import join

COUNT, EPOCHS = 96, 9
SCHEMAS = [
    CacheSchema(points=1024, views=3, image_side=224, patch_side=patch, channels=channels)
    for patch, channels in ((16, 192), (14, 384))
]


def cache(path: Path, schema: CacheSchema, per_shard: int) -> Cache:
    """A cache of COUNT shapes, whose points do not depend on the rest of the schema."""
    config = CacheConfig(shapes_per_shard=per_shard, depth="none", class_token="float16")
    recipe = replace(make_recipe(config), teacher={"channels": schema.channels})
    writer = create_cache(path, recipe, schema, config)
    for shard, start in enumerate(range(0, COUNT, per_shard)):
        some = range(start, min(start + per_shard, COUNT))
        records = [replace(make_record(i, schema), points=make_record(i, SCHEMAS[0]).points) for i in some]
        write_shard(writer.handle, shard, records)
    writer.finish(planned=COUNT)
    return teacher_cache.open(path, threads=1)


def main() -> None:
    """Print a line for each way of reading."""
    experiment = load_experiment("quickstart")
    config = replace(experiment.trainer, readers=0)
    alone = Ranks(rank=0, size=1, device=torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        first, second = (cache(Path(folder) / str(i), schema, 32 >> i) for i, schema in enumerate(SCHEMAS))
        (further,) = join(first, [second], [(True, True)])
        loaders = {
            name: Loader(source, experiment.model, config, alone, whole=True, further=more)
            for name, source, more in (("first", first, []), ("second", second, []), ("both", first, [further]))
        }
        times: dict[str, list[float]] = {name: [] for name in loaders}
        for epoch in range(EPOCHS):
            for name, loader in loaders.items():
                began = time.process_time()
                for _ in loader.epoch(epoch):
                    pass
                times[name].append((time.process_time() - began) / COUNT)
    for name, seconds in times.items():
        print(f"{name:<8} {1e3 * np.median(seconds[1:]):.2f} ms a shape")


if __name__ == "__main__":
    main()
