"""Parametric everyday objects: ``CATEGORIES`` lists them in a fixed order; each draws itself on a ``Sketch``."""

from pipeline.corpora.objects import (
    aircraft,
    airplane,
    bicycle,
    boat,
    furniture,
    household,
    music,
    outdoors,
    seating,
    vehicles,
    vessels,
)
from pipeline.corpora.objects.sketch import Category, Fact, Part, Sketch

__all__ = ["CATEGORIES", "Category", "Fact", "Part", "Sketch"]

# The order is part of what a seed means: a new category goes to the end, and GENERATOR_VERSION rises.
CATEGORIES: tuple[Category, ...] = (
    *seating.CATEGORIES,
    *furniture.CATEGORIES,
    *music.CATEGORIES,
    *vessels.CATEGORIES,
    *household.CATEGORIES,
    *vehicles.CATEGORIES,
    *bicycle.CATEGORIES,
    *boat.CATEGORIES,
    *airplane.CATEGORIES,
    *aircraft.CATEGORIES,
    *outdoors.CATEGORIES,
)
