"""Triangles take a way of their own through the cutting of polygons: it says what the general one says."""

import numpy as np

from pipeline.corpora.formats.polygons import _are_covered, _turned


def test_triangles_are_covered_by_themselves_whatever_they_are():
    generator = np.random.default_rng(4)
    vertices = generator.normal(size=(41, 3)) * 10.0 ** generator.integers(-30, 30, size=(41, 1))
    vertices[7] = np.nan
    vertices[8] = np.inf
    vertices[9] = vertices[10]
    faces = generator.integers(0, 41, size=(5003, 3))
    faces[:3] = [(9, 10, 11), (5, 5, 5), (7, 8, 9)]
    turned, covered, sizes = _turned(vertices, faces)
    general, general_sizes = _are_covered(vertices, faces)
    np.testing.assert_array_equal(turned, faces)
    np.testing.assert_array_equal(covered, general)
    np.testing.assert_allclose(sizes, general_sizes, rtol=1e-12, equal_nan=True)
