"""Image models in single files and in folders of diffusers: what is merged of both is what is merged of one kind."""

from __future__ import annotations

import hashlib

import pytest

import weightsmith
from weightsmith.findings import errors_among

pytest.importorskip("diffusers.loaders.single_file_utils")
pytestmark = pytest.mark.filterwarnings("ignore")

from diffusers.loaders import single_file_utils as converters  # noqa: E402
from tests.checkpoints import image_files  # noqa: E402
from tests.checkpoints.image_files import as_components, write_pipeline, write_single  # noqa: E402

RECIPE = """weightsmith: 1
merge_method: dare_linear
base_model: {base}
seed: 5
parameters: {{density: 0.6}}
models:
  - {{model: {one}, parameters: {{weight: 0.5}}}}
  - {{model: {other}, parameters: {{weight: 0.7}}}}
"""


def _merged(root, base, one, other, name):
    """Digests of all files of weights of the result, by name, and the plan's findings."""
    recipe = root / f"{name}.yaml"
    recipe.write_text(RECIPE.format(base=base, one=one, other=other))
    findings = weightsmith.plan(recipe).findings
    weightsmith.merge(recipe, root / name)
    files = sorted((root / name).rglob("*.safetensors"))
    found = {str(f.relative_to(root / name)): hashlib.sha256(f.read_bytes()) for f in files}
    return {key: digest.hexdigest() for key, digest in found.items()}, findings


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models as single files and as folders; random masks follow the last part of a path."""
    root = tmp_path_factory.mktemp("models")
    files, folders = [], []
    for seed, name in enumerate("abc"):
        single = image_files.single_file(seed, xl=True)
        files.append(write_single(root / "files" / f"{name}.safetensors", single))
        components = as_components(single, xl=True)
        folders.append(write_pipeline(root / "folders" / f"{name}.safetensors", components))
    return files, folders


def test_a_folder_among_single_files(models, tmp_path):
    files, folders = models
    in_one, quiet = _merged(tmp_path, *files, "one")
    assert [f.code for f in quiet] == []
    mixed, findings = _merged(tmp_path, files[0], folders[1], files[2], "mixed")
    assert mixed == in_one
    (found,) = [f for f in findings if f.code == "spelling"]
    assert found.subject == "b.safetensors"
    assert "tensors that it has no place for are those of" in found.sentence
    assert not errors_among(findings)


def test_a_single_file_among_folders(models, tmp_path):
    files, folders = models
    in_one, quiet = _merged(tmp_path, *folders, "one")
    assert [f.code for f in quiet] == []
    mixed, findings = _merged(tmp_path, folders[0], files[1], folders[2], "mixed")
    assert mixed == in_one
    assert [f.code for f in findings] == ["spelling"]
    assert set(mixed) >= {
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    }


@pytest.mark.parametrize("kind", ["flux", "wan"])
def test_denoisers_of_their_authors_and_of_diffusers(tmp_path, kind):
    make, convert = {
        "flux": (
            image_files.flux_file,
            converters.convert_flux_transformer_checkpoint_to_diffusers,
        ),
        "wan": (image_files.wan_file, converters.convert_wan_transformer_to_diffusers),
    }[kind]
    authors, folders = [], []
    for seed, name in enumerate("abc"):
        tensors = make(seed)
        authors.append(write_single(tmp_path / "authors" / f"{name}.safetensors", tensors))
        folders.append(
            write_single(tmp_path / "folders" / f"{name}.safetensors", convert(dict(tensors)))
        )
    in_one, _ = _merged(tmp_path, *authors, "one")
    assert _merged(tmp_path, authors[0], folders[1], authors[2], "mixed")[0] == in_one
    in_other, _ = _merged(tmp_path, *folders, "other")
    assert _merged(tmp_path, folders[0], authors[1], folders[2], "mixed other")[0] == in_other
