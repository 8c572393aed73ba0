"""Both formats keep the one contract."""

from teacher_cache.testing import CacheContract


class TestZarr(CacheContract):
    format = "zarr"


class TestWebDataset(CacheContract):
    format = "webdataset"
