"""docs/coming-from.md: no key of the others is forgotten, what is said of ours is so, and every command runs.

The run takes pictures from the folder that DIFFIT_PHOTOS names, made-up ones without it. It is shortened as `SHORTER`,
`NARROWER` and `FEWER` say, and what would be downloaded has stand-ins: Inception, Stable Diffusion's autoencoder and
the published weights; LPIPS is left out where VGG's weights are not in the cache.
"""

import gzip
import inspect
import os
import re
import shlex
import time
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import noise
from safetensors.torch import save_file
from test_evaluate import PixelInception
from test_hub import published_shapes, published_tensors

from diffit_lib.checkpoints import autoencoders
from diffit_lib.checkpoints.autoencoders import VAECard
from diffit_lib.checkpoints.hub import HUB_MODELS
from diffit_lib.cli.commands import VERBS
from diffit_lib.cli.main import main, parser, with_underscores
from diffit_lib.cli.options import experiment_for
from diffit_lib.config.experiment import VAEExperimentConfig
from diffit_lib.config.models import AutoencoderConfig
from diffit_lib.config.presets import PRESETS, VAE_PRESETS
from diffit_lib.data.folders import SUFFIXES
from diffit_lib.evaluation import evaluator as evaluating
from diffit_lib.evaluation import features as extractors
from diffit_lib.models.latent_space import LatentSpace
from diffit_lib.models.vae import KLAutoencoder
from diffit_lib.reports import diagnosis
from diffit_lib.training import train as report

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.S) for line in block.splitlines()]
TABLES = [table.splitlines() for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.M)]
POSITIONAL = {"train": "digits", "train-vae": "vae-digits", "sample": "digits", "evaluate": "digits", "pack": "photos"}

# What each of the others takes, by features of its command line and its configuration files.
THEIRS = {
    "DiffiT-v2, README": """
        outdir data gpus batch-gpu resolution timesteps base-dim lr kimg network seeds grid ddim steps
    """,
    "DiffiT-v2, train": """
        outdir cfg data gpus batch-gpu image-size model kimg tick snap seed lr precision ema-rate init-weights
        schedule-sampler num-fid-samples combra-ref-count cfg-scale eval-sampler eval-sampling-steps grad-accum
        grad-ckpt lr-warmup tf32 bench mirror workers cache-in-ram desc combra-metrics snapshot-keep-last dry-run
    """,
    "DiffiT-v2, sample": """
        network model-path outdir samples-per-class classes seeds class-idx batch-gpu gpus base-seed save-mode
        desc merge no-merge hdf5-compression hdf5-chunk-images image-size model cfg-scale steps num-classes
        num-sampling-steps sampler scale-pow vae-decoder decode-layer num-samples batch-size no-cfg-cond
        no-class-cond seed
    """,
    "DiffiT-v2, others": """
        ref-batch ref-path sample-batch sample-path batch-size device metric source dest max-images transform
        resolution
    """,
    "DiT-PyTorch": """
        im_path im_size im_channels num_timesteps beta_start beta_end patch_size num_layers hidden_size num_heads
        head_dim timestep_emb_dim z_channels codebook_size down_channels mid_channels down_sample attn_down
        norm_channels num_down_layers num_mid_layers num_up_layers seed task_name autoencoder_batch_size
        autoencoder_epochs autoencoder_lr autoencoder_acc_steps disc_start disc_weight codebook_weight
        commitment_beta perceptual_weight kl_weight autoencoder_img_save_steps save_latents dit_batch_size
        dit_epochs num_samples num_grid_rows dit_lr dit_acc_steps vae_latent_dir_name dit_ckpt_name
        vae_autoencoder_ckpt_name vae_discriminator_ckpt_name
    """,
    "xdiffusion": """
        num_training_steps batch_size config_path sample_with_guidance save_and_sample_every_n
        load_model_weights_from_checkpoint resume_from dataset_name mixed_precision use_lora_training force_cpu
        num_samples guidance checkpoint sampling_steps sampler_config_path lora_path parameterization num_scales
        schedule_type loss_type importance_sampler context_preprocessing input_preprocessing scale
        unconditional_guidance_probability signals unconditional_context dynamic_thresholding enable p c
        input_channels output_channels input_spatial_size patch_size hidden depth heads mlp_ratio is_learned_sigma
        is_class_conditional dropout num_classes conditioning image_size num_channels optimizer
        gradient_accumulation_steps compile exponential_moving_average output_spatial_size
    """,
    "DiffiT-Implementation": """
        MODEL IS_TRAIN IS_TEST IS_METRIC DATASET_NAME DIR_WEIGHTS PATH_WEIGHTS BATCH_SIZE_TRAIN BATCH_SIZE_TEST
        LEARNING_RATE IMG_SIZE NUM_EPOCHS D_MODEL N_LATENT_BLOCKS NUM_HEADS DROPOUT_PROB D_FF T
    """,
    "DiT": """
        model image-size ckpt vae num-classes cfg-scale num-sampling-steps seed data-path results-dir epochs
        global-batch-size global-seed num-workers log-every ckpt-every num-fid-samples per-proc-batch-size
        sample-dir tf32
    """,
    "EDM": """
        outdir data cond arch precond duration batch batch-gpu cbase cres lr ema dropout augment xflip fp16 ls
        bench cache workers desc nosubdir tick snap dump seed transfer resume dry-run network seeds subdirs class
        steps solver S_churn S_min S_max S_noise sigma_min sigma_max rho disc schedule scaling images ref num
        source dest max-images transform resolution
    """,
}

# What the run adds to a command, by its verb and by the network it trains; a later option replaces an earlier one.
SHORTER = {
    "train": "--max_steps=2 --batch_size=8 --steps=2 --threads=1",
    "train-vae": "--max_steps=2 --batch_size=8 --num_layers=1 --disc_start=8 --disc_width=8 --threads=1 --workers=0",
    "sample": "--steps=3",
    "evaluate": "",
}
NARROWER = {
    "image": "--width=8 --num_blocks=1 --time_dim=32 --num_heads=2",
    "transformer": "--width=32 --depth=2 --num_heads=2",
}
FEWER = {
    "--devices=8": "--devices=1",
    "--devices=4": "--devices=2",
    "--seeds=0-49999": "--seeds=0-15",
}
FEWER |= {"--images=50_000": "--images=16", "--steps=5,10,20": "--steps=2,3"}  # of sample and evaluate

IMAGENETTE = (1440764, 2102040, 2979186, 3000684, 3028079, 3394916, 3417042, 3425413, 3445777, 3888257)
IMAGENETTE = [f"n{number:08d}" for number in IMAGENETTE]
CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NOT_OF_THE_RECIPE = {"config", "devices", "num_nodes", *inspect.signature(VERBS["train"]).parameters}


def joined(words):
    """--name value -> --name=value, in the library's spelling."""
    words = [with_underscores(word) for word in words]
    return re.sub(r"(--\w+) (?!--)(\S+|'[^']*')", r"\1=\2", shlex.join(words))


def spans(cell):
    """What a cell has in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def options(words):
    """The names of the options among words."""
    return {word.partition("=")[0] for word in map(with_underscores, words) if word.startswith("--")}


def ours():
    """Verb and words of every option that a middle column has."""
    for head, _, *rows in TABLES:
        verb = re.findall(r"`diffit ([\w-]+)`", head)
        for row in rows * bool(verb):
            for span in spans(row.split("|")[2]):
                if span.startswith("--"):
                    yield verb[0], shlex.split(span)


def test_every_command_is_one_of_ours():
    assert [command for command in COMMANDS if not command.startswith("diffit ")] == []  # that they parse: test_docs


@pytest.mark.parametrize(("where", "names"), THEIRS.items(), ids=THEIRS)
def test_no_option_of_theirs_is_forgotten(where, names):
    shown = " ".join(span for table in TABLES for row in table for span in spans(row.split("|")[1]))
    assert [name for name in names.split() if not re.search(rf"(?<![\w-])(--?)?{name}(?![\w-])", shown)] == []


def test_every_option_of_ours_is_understood_and_run():
    run = {}
    for command in COMMANDS:
        _, verb, *words = shlex.split(command)
        run.setdefault(verb, set()).update(options(words))
    wanting, line = set(), parser()
    for verb, words in ours():
        whole = [word for word in words if "=" in word or not word.startswith("--")]
        if whole or set(words) <= {"--flip", "--clip", "--checkpointing", "--trajectory", "--dry-run"}:
            line.parse_args([verb, POSITIONAL[verb], *map(with_underscores, words)])
        wanting |= {(verb, option) for option in options(words) - run[verb]}
    assert wanting == set()


@cache
def pictures(folder):
    """Real pictures, from a folder of this name in DIFFIT_PHOTOS if there is one, else from all of it."""
    photos = Path(os.environ["DIFFIT_PHOTOS"])
    below = photos / folder if (photos / folder).is_dir() else photos
    found = sorted(path for path in below.rglob("*") if path.suffix.lower() in SUFFIXES)
    assert found, f"no pictures below {below}"
    return found[:: max(1, len(found) // 100)]  # of all classes


def fill(folder, source, classes, count):
    """So many pictures for each class below a folder: links to real ones, or noise."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        if "DIFFIT_PHOTOS" in os.environ:
            known = [path for path in pictures(source) if path.parent.name == name] or pictures(source)
            for k, path in enumerate(islice(cycle(known), number, number + count)):
                (folder / name / f"{number:02d}-{k:03d}{path.suffix}").symlink_to(path)
        else:
            for k in range(count):
                noise(100 * number + k, 40, 48).save(folder / name / f"{k:03d}.png")


def write_mnist(folder, count=200):
    """Files of the first MNIST digits, where the user's cache has them, else of as many made-up ones."""
    there = Path.home() / ".cache/diffit/data/MNIST/raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        made_up = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8), np.arange(count) % 10
        for kind, head, content in (("images-idx3", 16, made_up[0]), ("labels-idx1", 8, made_up[1])):
            file = f"{part}-{kind}-ubyte"
            size = count * content[0].size
            if (there / f"{file}.gz").is_file():
                with gzip.open(there / f"{file}.gz") as packed:
                    whole = packed.read(head + size)
            else:
                shape = np.array(content.shape, ">i4").tobytes()
                whole = bytes([0, 0, 8, content.ndim]) + shape + content.astype(np.uint8).tobytes()
            (folder / file).write_bytes(whole[:4] + np.array([count], ">i4").tobytes() + whole[8:])


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with all that the page speaks of, but for what its own commands make; stand-ins for downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIFFIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    fill(tmp_path / "photos", "photos", ["holiday"], 60)
    fill(tmp_path / "data" / "CelebAMask-HQ", "faces", ["CelebA-HQ-img", "CelebAMask-HQ-mask-anno"], 60)
    fill(tmp_path / "imagenette" / "train", "imagenette", IMAGENETTE, 6)
    fill(tmp_path / "downloads" / "cifar10", "cifar10", CIFAR10, 8)
    write_mnist(tmp_path / "cache" / "data" / "MNIST" / "raw")

    for task, name in (
        (report, "GRID"),
        (diagnosis, "SHOWN"),
        (diagnosis, "MOST"),
    ):  # images that training draws
        monkeypatch.setattr(task, name, 8)
    monkeypatch.setattr(extractors, "TRAINING_IMAGES", 64)  # the small classifier's
    monkeypatch.setattr(evaluating, "load_inception", lambda path: PixelInception())
    network = AutoencoderConfig(channels=(8, 8, 8, 8), num_layers=1, mid_attn=False)
    card = VAECard(VAEExperimentConfig("stand-in", "", network=network), mean=(0.0,) * 4, std=(1.0,) * 4)
    space = LatentSpace(KLAutoencoder(network), torch.zeros(4), torch.ones(4))
    monkeypatch.setattr(autoencoders, "load_stable_diffusion", lambda name, file=None: (space, card))
    (tmp_path / "cache" / "weights").mkdir()
    for name, block in (("nvidia/diffit-256", "diffit"), ("meta/dit-xl-2-256", "dit")):
        known = HUB_MODELS[name]
        small = known.experiment.override(width=32, depth=2, num_heads=2)
        monkeypatch.setitem(HUB_MODELS, name, replace(known, experiment=small))
        tensors = published_tensors(published_shapes(block, width=32, depth=2, heads=2))
        path = tmp_path / "cache" / "weights" / known.file
        torch.save(tensors, path) if path.suffix == ".pt" else save_file(tensors, path)
    return tmp_path


def shortened(command):
    """The words of a command of the page, made to take seconds."""
    _, verb, *words = shlex.split(command)
    words = [verb, *shlex.split(joined(words))]
    words = [FEWER.get(word, word) for word in words]
    config = parser().parse_args(words)[verb].as_dict()
    if verb not in SHORTER or (verb in ("train", "train-vae") and config.get("preset") is None):
        return words  # nothing takes long, or a run goes on
    more = SHORTER[verb].split()
    if verb in ("train", "train-vae"):
        given = {key: value for key, value in config.items() if key not in NOT_OF_THE_RECIPE}
        experiment = experiment_for(PRESETS if verb == "train" else VAE_PRESETS, config["preset"], None, given)
        more += NARROWER[experiment.network.kind].split() if verb == "train" else []
        more += [] if verb == "train" else [f"--channels={','.join('8' for _ in experiment.network.channels)}"]
        more += [] if "workers" in given or verb == "train-vae" else ["--workers=0"]
    return [*words, *more]


@pytest.mark.slow
def test_every_command_runs_as_it_stands_one_after_another(here):
    failed = []
    for command in COMMANDS:
        words, start = shortened(command), time.perf_counter()
        try:
            status = main(words)
        except Exception as error:  # told with the others
            status = repr(error)
        told = f"exit {status}, {time.perf_counter() - start:.1f} s: {command}\n    as: diffit {shlex.join(words)}\n"
        with open(here / "commands.log", "a") as log:
            log.write(told)
        failed += [told] * (status != 0)
    assert failed == []
