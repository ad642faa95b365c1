"""Quick trainings on pixels, for the tests of what trains on them."""

from __future__ import annotations

from histostore.cohort import Cohort
from zoo.finetune.presets import preset
from zoo.finetune.running import finetune, prepare_images
from zoo.finetune.spec import FinetuneSpec, Machine
from zoo.fit import make_split

ONE = Machine(device="cpu", workers=0, threads=1)
AMIL = FinetuneSpec(model="amil-cnn", px=28)


def quick(table, out, spec=AMIL, *, split=None, seeds=1, **settings):
    prepared = prepare_images(Cohort.read(table), spec)
    split = make_split(prepared.images, folds=2) if split is None else split
    recipe = preset(**{"epochs": 1, "lr": 1e-3, **settings})
    return finetune(prepared, spec, out=out, recipe=recipe, split=split, seeds=seeds, machine=ONE)
