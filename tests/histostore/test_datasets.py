"""Data sets: their layouts become tables, anything else is refused with what was found."""

from __future__ import annotations

import fsspec
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.cohort import Cohort
from histostore.datasets import bach, breakhis, folder, lymphoma, nct_crc, write_cohort
from histostore.errors import CohortError, OptionError, StorageError
from histostore.labels import map_labels, parse_label_map
from tests.commands import call


def plant(root, *names):
    """Make empty files below a folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_sub_folders_are_classes_and_rows_are_in_natural_order(tmp_path):
    plant(
        tmp_path,
        *("b/10.png", "b/2.png", "a/x.TIF", "a/deep/1.svs", "a/.hidden.png", ".git/1.png"),
        *("a/Thumbs.db", "a/.DS_Store", "notes.txt"),
    )
    frame = folder(tmp_path)
    assert frame["image_id"].tolist() == ["a/deep/1", "a/x", "b/2", "b/10"]
    assert frame["label"].tolist() == ["a", "a", "b", "b"]
    assert frame["path"].tolist()[2] == f"{tmp_path}/b/2.png"
    assert list(frame.columns) == ["image_id", "path", "label"]


def test_images_that_differ_in_their_ending_alone_keep_it(tmp_path):
    frame = folder(plant(tmp_path, "a/1.png", "a/1.jpg", "a/1.png.tif", "b/2.png"))
    assert frame["image_id"].tolist() == ["a/1.jpg", "a/1.png", "a/1.png.tif", "b/2.png"]


@given(
    names=st.sets(
        st.tuples(
            st.sampled_from("abc"),
            st.text("12é .", min_size=1, max_size=3),
            st.sampled_from([".png", ".tif", ".ome.tif", ".JPG"]),
        ),
        min_size=1,
    )
)
def test_a_folder_written_as_a_table_is_a_cohort(names, tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    files = [f"{label}/x{name}{end}" for label, name, end in names]
    plant(root, *files)
    table = write_cohort(folder(root), root / "cohort.csv")
    cohort = Cohort.read(table)
    assert sorted(cohort.column("path")) == sorted(files)
    assert sorted(cohort.urls) == sorted(f"{root}/{name}" for name in files)


@pytest.mark.parametrize("read", [folder, breakhis, bach, lymphoma, nct_crc])
def test_an_absent_or_empty_folder_is_refused(read, tmp_path):
    with pytest.raises(CohortError, match="there is no such folder"):
        read(tmp_path / "absent")
    with pytest.raises(CohortError, match=r"no image in it \(found: nothing\)"):
        read(tmp_path)
    plant(tmp_path, "a/slide.czi", "readme")
    with pytest.raises(CohortError, match=r"no image in it \(found: .czi, files without"):
        read(tmp_path)


def test_a_layout_without_classes_is_refused_with_every_finding(tmp_path):
    plant(tmp_path, "1.png", "2.png", "a/3.png", "b/4.czi")
    with pytest.raises(CohortError, match="3 problems") as caught:
        folder(tmp_path)
    assert caught.value.problems == (
        "1.png lies in no class folder",
        "2.png lies in no class folder",
        "folder 'b' holds no image, but .czi",
    )


@pytest.mark.parametrize(
    ("names", "split", "label"),
    [
        (["train/a/1.png", "Val/b/2.png", "TEST/a/deep/3.png"], "train validation test", "a b a"),
        (
            ["a/train/1.png", "b/validation/2.png", "b/testing/3.png"],
            "train validation test",
            "abb",
        ),
        (["test/a/1.png", "test/b/2.png"], "test test", "a b"),
    ],
)
def test_folders_called_as_parts_of_a_split_become_a_column(names, split, label, tmp_path):
    frame = folder(plant(tmp_path, *names)).set_index("path")
    rows = frame.loc[[f"{tmp_path}/{name}" for name in names]]
    assert rows["split"].tolist() == split.split()
    assert rows["label"].tolist() == list(label.replace(" ", ""))
    cohort = Cohort.read(write_cohort(frame.reset_index(), tmp_path / "c.csv"))
    assert cohort.has("split")
    assert len(set(cohort.image_ids)) == len(names)


def test_a_class_may_be_called_as_a_part_of_a_split(tmp_path):
    frame = folder(plant(tmp_path, "control/1.png", "test/train/2.png"))
    assert frame["label"].tolist() == ["control", "test"]
    assert "split" not in frame


@pytest.mark.parametrize(
    ("names", "problems"),
    [
        (["train/a/1.png", "test/2.png"], ["test/2.png lies in no class folder"]),
        (
            ["train/a/1.png", "test/a/1.png", "extra/a/1.png"],
            ["folders test, train lie beside extra: move those elsewhere"],
        ),
        (
            ["NCT-CRC-HE-100K/ADI/1.tif", "NCT-CRC-HE-100K/TUM/1.tif", "CRC-VAL-HE-7K/ADI/1.tif"],
            [
                "CRC-VAL-HE-7K, NCT-CRC-HE-100K: in it lie ADI, TUM, which are the classes of "
                "NCT-CRC-HE; histostore cohort nct-crc reads it"
            ],
        ),
        (
            ["tiles/01_TUMOR/1.tif", "tiles/08_EMPTY/2.tif", "large/3.tif"],
            [
                "large, tiles: in it lie 01_TUMOR, 08_EMPTY, which are the classes of Kather 2016; "
                "give the folder that holds them"
            ],
        ),
        (
            ["ADI-AAAAAAAB.tif", "TUM-TCGA-AAAAAAAB.tif"],
            [
                "ADI-AAAAAAAB.tif lies in no class folder, but is called as in NCT-CRC-HE; "
                "histostore cohort nct-crc reads it"
            ],
        ),
    ],
)
def test_folders_that_cannot_be_the_classes_are_refused(names, problems, tmp_path):
    with pytest.raises(CohortError) as caught:
        folder(plant(tmp_path, *names))
    assert list(caught.value.problems) == problems


def test_tiles_in_a_folder_of_their_slide_keep_their_class(tmp_path):
    names = [f"{label}/s{n}/s{n}_{label}.png" for label in ("normal", "tumour") for n in (1, 2)]
    assert folder(plant(tmp_path, *names))["label"].value_counts().tolist() == [2, 2]
    one = folder(plant(tmp_path / "01", *(f"01_TUMOR/{name}.tif" for name in "ab")))
    assert set(one["label"]) == {"01_TUMOR"}


# NCT-CRC-HE ---------------------------------------------------------------------------------


@pytest.mark.parametrize("above", ["", "{}/", "set/{}/"])
def test_nct_is_read_by_its_names_wherever_they_lie(above, tmp_path):
    labels = ("ADI", "NORM", "TUM")
    plant(tmp_path, *(f"{above.format(label)}{label}-AAAMHQMK.tif" for label in labels))
    frame = nct_crc(tmp_path)
    assert sorted(frame["label"]) == sorted(labels)
    assert set(frame["mpp"]) == {"0.5"}
    assert "split" not in frame
    assert len(Cohort.read(write_cohort(frame, tmp_path / "c.csv"))) == 3


def test_both_sets_beside_each_other_are_train_and_test(tmp_path):
    plant(
        tmp_path, "NCT-CRC-HE-100K/ADI/ADI-AAAMHQMK.tif", "CRC-VAL-HE-7K/ADI/ADI-TCGA-AAICEQFN.tif"
    )
    frame = nct_crc(tmp_path)
    assert frame["split"].tolist() == ["test", "train"]
    assert frame["image_id"].tolist()[0] == "CRC-VAL-HE-7K/ADI/ADI-TCGA-AAICEQFN"


def test_what_contradicts_itself_is_no_nct(tmp_path):
    plant(
        tmp_path,
        "NCT-CRC-HE-100K/ADI/TUM-AAAMHQMK.tif",
        "NCT-CRC-HE-100K-NONORM/ADI/ADI-AAAMHQMK.tif",
        "CRC-VAL-HE-7K/x/ADI-1.tif",
    )
    with pytest.raises(CohortError) as caught:
        nct_crc(tmp_path)
    assert [text.partition(":")[0] for text in caught.value.problems] == [
        "CRC-VAL-HE-7K/x/ADI-1.tif",
        "NCT-CRC-HE-100K/ADI/TUM-AAAMHQMK.tif",
        "NCT-CRC-HE-100K with and without -NONORM",
    ]


@pytest.mark.real
def test_the_real_nct_sample(real_data, tmp_path):
    table = tmp_path / "c.csv"
    done = call(
        "histostore", "cohort", "nct-crc", real_data / "nct-crc-sample", "-o", table, "--json"
    )
    assert done.json["n_images"] == len(done.json["labels"]) == 9
    assert set(Cohort.read(table).mpp) == {0.5}


def test_lymphoma_wants_its_three_folders(tmp_path):
    plant(tmp_path, "CLL/1.png", "FL/1.png", "DLBCL/1.png")
    with pytest.raises(CohortError, match="found CLL, DLBCL, FL"):
        lymphoma(tmp_path)


def test_breakhis_names_are_taken_apart(tmp_path):
    deep = "breast/malignant/SOB/ductal_carcinoma/SOB_M_DC_14-2523/40X"
    plant(
        tmp_path, "SOB_B_A-14-22549AB-40-001.png", f"{deep}/SOB_M_DC-14-2523-400-010.png", "x.txt"
    )
    assert breakhis(tmp_path).to_dict("records") == [
        {
            "image_id": "SOB_B_A-14-22549AB-40-001",
            "path": f"{tmp_path}/SOB_B_A-14-22549AB-40-001.png",
            "label": "benign",
            "patient_id": "14-22549AB",
            "subtype": "adenosis",
            "magnification": "40",
            "year": "2014",
            "sequence": "001",
        },
        {
            "image_id": "SOB_M_DC-14-2523-400-010",
            "path": f"{tmp_path}/{deep}/SOB_M_DC-14-2523-400-010.png",
            "label": "malignant",
            "patient_id": "14-2523",
            "subtype": "ductal-carcinoma",
            "magnification": "400",
            "year": "2014",
            "sequence": "010",
        },
    ]


def test_other_names_are_no_breakhis(tmp_path):
    plant(
        tmp_path, "SOB_M_A-14-2523-40-001.png", "SOB_B_XX-14-1-40-001.png", "SOB_B_A-14-1-40-1.png"
    )
    with pytest.raises(CohortError) as caught:
        breakhis(tmp_path)
    assert [text.split(":")[0] for text in caught.value.problems] == [
        "SOB_B_XX-14-1-40-001.png",  # no such subtype
        "SOB_M_A-14-2523-40-001.png",  # adenosis is benign
    ]


BACH = ("Benign/b001.tif", "InSitu/is001.tif", "Invasive/iv001.tif", "Normal/n001.tif")


@pytest.mark.parametrize("above", ["", "Photos/"])
def test_bach_is_read_from_its_folders(above, tmp_path):
    plant(tmp_path, *(above + name for name in BACH))
    frame = bach(tmp_path)
    assert frame["image_id"].tolist() == ["b001", "is001", "iv001", "n001"]
    assert frame["label"].tolist() == ["Benign", "InSitu", "Invasive", "Normal"]
    assert set(frame["mpp"]) == {"0.42"}
    assert "patient_id" not in frame


def test_bach_is_read_from_its_table(tmp_path):
    plant(tmp_path, "b001.tif", "n001.tif")
    (tmp_path / "microscopy_ground_truth.csv").write_text("b001.tif,Benign\nn001.tif, Normal\n")
    assert bach(tmp_path)["label"].tolist() == ["Benign", "Normal"]


def test_bach_says_what_disagrees(tmp_path):
    plant(tmp_path, *BACH, "x001.tif", "Other/o1.tif")
    (tmp_path / "microscopy_ground_truth.csv").write_text("b001.tif,Normal\n")
    with pytest.raises(CohortError) as caught:
        bach(tmp_path)
    assert caught.value.problems == (
        "Benign/b001.tif: the table says Normal",
        "Other/o1.tif: class Other; expected Benign, InSitu, Invasive, Normal",
        "x001.tif: in no class folder, and in no *ground_truth.csv",
    )


def test_a_table_elsewhere_holds_absolute_paths(tmp_path):
    plant(tmp_path / "images", "a/1.png")
    (tmp_path / "tables").mkdir()
    table = write_cohort(folder(tmp_path / "images"), tmp_path / "tables" / "cohort.csv")
    assert Cohort.read(table).column("path").tolist() == [f"{tmp_path}/images/a/1.png"]
    above = write_cohort(folder(tmp_path / "images"), tmp_path / "cohort.csv")
    assert Cohort.read(above).column("path").tolist() == ["images/a/1.png"]


def test_missing_values_are_empty_cells(tmp_path):
    frame = pd.DataFrame({"image_id": ["a", "b"], "path": ["/a", "/b"], "label": ["x", None]})
    cohort = Cohort.read(write_cohort(frame, tmp_path / "c.csv"), check_files=False)
    assert cohort.column("label").tolist() == ["x", None]
    assert frame["path"].tolist() == ["/a", "/b"]


def test_a_table_that_cannot_be_written_leaves_nothing(tmp_path):
    frame = folder(plant(tmp_path, "a/1.png"))
    with pytest.raises(StorageError, match="no such file or folder"):
        write_cohort(frame, tmp_path / "absent" / "cohort.csv")
    (tmp_path / "cohort.csv").mkdir()
    with pytest.raises(StorageError, match="irectory"):
        write_cohort(frame, tmp_path / "cohort.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cohort.csv"]


def test_a_set_in_a_bucket_becomes_a_table_there():
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket-2/set/a/1.png", b"")
    fs.pipe("/bucket-2/set/b/2.png", b"")
    table = write_cohort(folder("memory://bucket-2/set"), "memory://bucket-2/cohort.csv")
    cohort = Cohort.read(table)
    assert cohort.column("path").tolist() == ["set/a/1.png", "set/b/2.png"]
    assert cohort.column("label").tolist() == ["a", "b"]
    fs.rm("/bucket-2", recursive=True)


@pytest.mark.real
def test_the_real_lymphoma_set(real_data, tmp_path):
    cohort = Cohort.read(write_cohort(lymphoma(real_data / "lymphoma"), tmp_path / "c.csv"))
    labels = cohort.column("label").tolist()
    assert {name: labels.count(name) for name in set(labels)} == {"CLL": 113, "FL": 139, "MCL": 122}
    assert cohort.image_ids[:3] == ("CLL/0", "CLL/1", "CLL/2")
    assert not cohort.has("patient_id")


@pytest.mark.real
def test_the_real_breakhis_sample(real_data):
    frame = breakhis(real_data / "breakhis-sample")
    assert len(frame) == 12
    assert frame["patient_id"].nunique() == 9
    assert frame["subtype"].nunique() == 8
    assert set(frame["magnification"]) == {"40", "100", "200", "400"}


def test_links_are_followed_and_loops_end(tmp_path):
    plant(tmp_path / "elsewhere", "1.png", "deep/2.png")
    root = plant(tmp_path / "set", "b/3.png")
    (root / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "b" / "up").symlink_to(root, target_is_directory=True)
    (root / "b" / "4.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    frame = folder(root)
    assert frame["image_id"].tolist() == ["a/1", "a/deep/2", "b/3", "b/4"]
    assert Cohort.read(write_cohort(frame, root / "cohort.csv")).urls[0] == f"{root}/a/1.png"


# Labels of one set as those of another ------------------------------------------------------


def test_bach_becomes_breakhis(tmp_path):
    plant(tmp_path, *(f"{name}/{name}1.tif" for name in ("Benign", "InSitu", "Invasive", "Normal")))
    frame = map_labels(bach(tmp_path), parse_label_map("bach-to-breakhis"))
    labels = dict(zip(frame["original_label"], frame["label"], strict=True))
    assert labels == {
        "Benign": "benign",
        "Normal": "benign",
        "InSitu": "malignant",
        "Invasive": "malignant",
    }


def test_images_without_a_label_stay_without():
    frame = pd.DataFrame({"image_id": ["a", "b"], "label": ["x", None]})
    assert map_labels(frame, {"x": "y", "z": "y"})["label"].tolist()[0] == "y"
    assert map_labels(frame, {"x": "y"})["label"].isna().tolist() == [False, True]


def test_a_label_that_the_map_does_not_name_is_refused():
    frame = pd.DataFrame({"image_id": ["a", "b", "c"], "label": ["x", "y", "z"]})
    with pytest.raises(CohortError, match="2 problems") as caught:
        map_labels(frame, {"x": "w"})
    assert caught.value.problems == ("label 'y' is not among x", "label 'z' is not among x")


@pytest.mark.parametrize("text", ["", "a", "a=", "=b", "a=b,", "a=b=c", "a=b,a=c", "bach-to-mars"])
def test_a_label_map_that_is_none_is_refused(text):
    with pytest.raises(OptionError, match="label map"):
        parse_label_map(text)


def test_the_command_maps_labels(tmp_path):
    plant(tmp_path, "CLL/1.png", "FL/2.png", "MCL/3.png")
    table = tmp_path / "cohort.csv"
    words = ("cohort", "lymphoma", tmp_path, "-o", table, "--json", "--map-labels")
    done = call("histostore", *words, "CLL=CLL,FL=other,MCL=other")
    assert done.json["labels"] == {"other": 2, "CLL": 1}
    assert Cohort.read(table).column("original_label").tolist() == ["CLL", "FL", "MCL"]
    assert "give OLD=NEW" in call("histostore", *words, "nonsense").err
