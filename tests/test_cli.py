"""The command line: every mistake is one line on stderr, exit status 2, and nothing written."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffit_lib import __version__
from diffit_lib.__main__ import run
from diffit_lib.checkpoints.weights import load_weights, save_weights
from diffit_lib.cli.main import VERBS, main, parser, with_underscores
from diffit_lib.cli.options import parse_seeds
from diffit_lib.config import presets
from diffit_lib.config.experiment import ExperimentConfig
from diffit_lib.config.presets import write_options
from diffit_lib.training.train import train
from diffit_lib.utils.errors import DiffitError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, tiny):
    """Work in an empty folder, with `digits` a tiny preset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny.override(name="digits"))


@pytest.fixture
def refuse(capsys, snapshot):
    """A function: this command is refused in one line, which matches, and nothing is written."""

    def refuse(command, says):
        before = snapshot()
        assert main(command.split()) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(r"diffit: [^\n]+\n", err)
        assert re.search(says, err), err
        assert "Traceback" not in err
        assert snapshot() == before

    return refuse


class TestMistakes:
    @pytest.mark.parametrize(
        ("command", "says"),
        [
            ("", "demo,explore,info,train,train-vae"),
            ("draw", "invalid choice: 'draw' .*demo"),
            ("evalute digits", "invalid choice: 'evalute' .*; did you mean evaluate"),
            ("train", "no preset is named; give one, or --run FOLDER"),
            (
                "train --run=nowhere",
                "no preset is named, and nowhere holds no options.yaml to go on from; ",
            ),
            ("train-vae", "no preset is named; give one, or --run FOLDER"),
            ("train digits --name=a/b:c", "name is 'b:c'; give letters, digits, dots and dashes"),
            ("train digits --network=unet", "network.*unet"),
            ("train digits --keep=-1", "keep is -1; give 0 or more"),
            ("train-vae vae-digits --augment=0.1", "--augment=0.1; `diffit train-vae --help` tells more"),
            ("train digit", "unknown preset 'digit'; did you mean digits"),
            ("train zzz", "unknown preset 'zzz'; the presets are celebhq, "),
            ("train-vae digits", "unknown autoencoder preset 'digits'; did you mean vae-digits"),
            ("train-vae vae-digits --image_size=7,8", "an image of 7x8 .* a height and a width that 2 divides"),
            ("train-vae vae-digits --down=maybe", "down is .*maybe.*; give true or false for each"),
            ("train-vae vae-digits --channels=8", r"down has 1 entries, but channels \(8,\) make 1 levels; give 0"),
            ("train digits more", "unrecognized arguments: more"),
            ("train digits --widht 8", "--widht 8; did you mean width\\? `diffit train --help` tells more"),
            ("train digits --width wide", "width.*wide"),
            ("train digits --width=2.5", r"width.*2\.5"),
            ("train digits --width=0", "width is 0; give a number above 0"),
            ("train digits --flip maybe", "flip.*maybe"),
            ("train digits --precision fp8", "precision.*fp8"),
            ("train digits --channel_mult=[]", r"channel_mult is \(\); give one factor above 0 per level"),
            ("train digits --channel_mult=1,x", r"channel_mult is \(1, 'x'\); give integers, e\.g\. 1,2,2"),
            ("train digits --image_size=8", "image_size.*8"),
            ("train digits --batch-size=16 --accumulate=3", "batch_size 16 does not split into accumulate 3"),
            ("train digits --minutes=-1", r"minutes is -1\.0; give a number above 0"),
            ("train digits --max_steps=half", "max_steps.*half"),
            ("train digits --window_size=3", "window_size 3 does not divide the 8x8 map"),
            ("train digits --timesteps=100", "timesteps is a field of denoiser 'vp'; give denoiser=vp too"),
            ("train digits --num_classes=3", "num_classes=3, but digits/train has 10 classes; "),
            ("train digits --data=nowhere", "no data set or path 'nowhere': "),
            (
                "info nothing",
                "nothing is called 'nothing': no preset, .*, no file or folder .*/nothing",
            ),
            ("info cifar-10", "did you mean cifar10"),
            ("evaluate nothing", "no weights file 'nothing'"),
            ("evaluate nothing --images=0", "images is 0; give 2 or more"),
            ("evaluate nothing --extractor=vgg", "extractor.*vgg"),
            ("evaluate digits --data=nowhere", "no data set or path 'nowhere': "),
            (
                "evaluate digits --protocol=adm",
                "protocol is 'adm', which the classifier does not take; give --extractor inception",
            ),
            ("sample digits --guidance_schedule=late", "guidance_schedule.*late"),
            ("train digits --crop=round", "crop.*round"),
            (
                f"train digits --mlp-ratio={'9' * 400}",
                "--mlp_ratio=9+ has too long a number .*; give one of at most 18 digits",
            ),
            ("sample", "required: sample.weights"),
            ("sample nothing", "no weights file 'nothing'"),
            ("sample nothing --seeds=", "seeds are ''; give numbers and rising ranges, e.g. 0-63,100"),
            ("sample nothing --seeds=5-3", "seeds are '5-3'; "),
            ("sample nothing --seeds=-1", "seeds are '-1'; "),
            ("sample nothing --seeds=1.5", "seeds are '1.5'; "),
            ("sample nothing --steps=few", "steps.*few"),
            ("sample nothing --grid=8x", "grid is '8x'; give columns and rows, e.g. 8x8"),
            ("sample nothing --grid=0x3", "grid is '0x3'; give columns and rows, e.g. 8x8"),
            ("sample nothing --format=gif", "format.*gif"),
            ("reconstruct nothing", "no weights file 'nothing'"),
            ("reconstruct vae-digits --images=0", "images is 0; give 1 or more"),
            ("reconstruct digits", "digits draws pixels, without an autoencoder; give weights that have one, or "),
        ],
    )
    def test_in_words_are_told_in_one_line(self, refuse, command, says):
        refuse(command, says)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ("--classes=10", "no class '10'; .*give a number from 0 to 9"),
            ("--classes=uno", "no class 'uno'; "),
            ("--classes=1,2,3", "3 classes for 2 seeds, which get them in turn; give more seeds, or fewer classes"),
            ("--seeds=1,0-3", "seed 1 is given more than once, and names one file; give each seed once"),
            ("--grid=2x2", "a grid of 2x2 shows 4 images, but 2 are drawn; give more seeds"),
            ("--per-class=2 --classes=1,1", "class 1 is given more than once"),
            ("--per-class=2 --classes=none", "per_class is 2, but 'none' is no class; give seeds instead"),
            ("--per-class=3", "per_class is 3, but 2 seeds are given, .* leave one of the two out"),
            ("--per-class=0", "per_class is 0; give 1 or more"),
            ("--per-class=2 --grid=3x2", "a grid of 3x2 has a class in each row, but 10 classes .* give 2x10 at most"),
            ("--batch-size=0", "batch_size is 0; give 1 or more"),
            ("--guidance=1,2,1", "guidance 1 is given more than once"),
            ("--guidance=1,", "guidance is '1,'; give a number, or several, e.g. 1,2,4"),
            ("--steps=1", "steps is 1; give 2 or more"),
            ("--sampler=huen", "sampler is 'huen'; give one of heun, "),
            ("--guidance=nan", "guidance is nan; give a finite number"),
            ("--steps=100000000000", "steps is 100000000000; give 2 or more, 100,000 at most"),
            ("--guidance=very", "guidance.*very"),
            ("--out=tiny.safetensors", "tiny.safetensors: File exists; give another path"),
            ("--out=tiny.safetensors/below", "Not a directory; give another path"),
        ],
    )
    def test_in_sampling_are_told_in_one_line(self, refuse, weights, tmp_path, options, says):
        (tmp_path / "tiny.safetensors").write_bytes(weights.read_bytes())
        refuse(f"sample tiny.safetensors --seeds=0,1 {options}", says)

    def test_classes_of_unconditional_weights_are_told_in_one_line(self, refuse, unconditional):
        refuse(f"sample {unconditional} --classes=3", "these weights are unconditional; leave classes out")
        refuse(f"sample {unconditional} --per-class=3", "these weights are unconditional; give seeds instead")


def other_program(path, weights):
    save_file(load_file(weights), path)


def truncated(path, weights):
    path.write_bytes(weights.read_bytes()[:-1])


def empty(path, weights):
    path.touch()


def text(path, weights):
    path.write_text("These are not weights.")


def folder(path, weights):
    path.mkdir()


def plain_pickle(path, weights):
    path.write_bytes(pickle.dumps({"ema.network.head.bias": [0.0]}))


def torch_zip(path, weights):
    torch.save(load_weights(weights)[0].state_dict(), path)


def torch_legacy(path, weights):
    torch.save(load_weights(weights)[0].state_dict(), path, _use_new_zipfile_serialization=False)


class TestWrongFiles:
    @pytest.mark.parametrize("verb", ["info", "sample", "evaluate"])
    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (other_program, "holds no diffit model"),
            (truncated, "is not a complete safetensors file .*; copy or download it again"),
            (empty, "is not a complete safetensors file"),
            (text, "is not a complete safetensors file"),
            (folder, "no weights file in folder wrong|wrong holds no images"),
            (plain_pickle, "holds more or less than tensors"),
            (torch_zip, "holds no diffit model, nor published weights"),
            (torch_legacy, "holds no diffit model, nor published weights"),
        ],
    )
    def test_are_told_in_one_line_and_nothing_is_unpickled(
        self, refuse, weights, tmp_path, monkeypatch, verb, make, says
    ):
        make(tmp_path / "wrong", weights)
        for target in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
            monkeypatch.setattr(target, None)
        open_tensors = torch.load

        def load_tensors_alone(*arguments, weights_only, **options):
            assert weights_only
            return open_tensors(*arguments, weights_only=True, **options)

        monkeypatch.setattr("torch.load", load_tensors_alone)
        refuse(f"{verb} wrong", says)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("devices: abc", "devices.*'abc' is no number above 0"),
            ("channel_mult: " + "[" * 3000 + "]" * 3000, "at most 1 MB with 1,000 lists"),
            ("a: &a [1, 1]\nb: &b [*a, *a]\nwidth: [*b, *b]", r"anchors \(& and \*\) are not read; write the values"),
            ("width: 1e22", "width.*1e\\+22"),
            ("1: 2", "does not accept option '1'|1"),
        ],
    )
    def test_of_options_are_told_in_one_line(self, refuse, tmp_path, text, says):
        (tmp_path / "mine.yaml").write_text(f"preset: digits\n{text}\n")
        refuse("train --config mine.yaml --dry-run", says)
        write_options(presets.preset("digits"), tmp_path / "run")
        (tmp_path / "run" / "options.yaml").write_text(f"preset: digits\ndata: digits\n{text}\n...\n")
        refuse("train --run run", r"run/options\.yaml cannot be read \(.*\); train into another folder")

    @pytest.mark.parametrize("name", ["last.ckpt", "options.yaml"])
    def test_in_a_run_folder_are_told_in_one_line(self, refuse, data, tmp_path, name):
        train(presets.preset("digits").override(max_steps=1), "run", data, progress=False)
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:100])
        refuse("train digits --run=run --max_steps=1", f"{name} .*; ")

    def test_as_a_run_folder_are_told_in_one_line(self, refuse, tmp_path):
        (tmp_path / "run").write_text("")
        refuse("train digits --run=run", "run: File exists; give another path")
        refuse("demo --run=run", "run: File exists; give another path")


class TestVerbs:
    def test_train_then_sample_then_info(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("diffit_lib.reports.html_report.write_report", lambda run: run / "report.html")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        assert main(["train", "digits", "--max-steps=2", "--batch-size=8", "--channel_mult=[1,1]"]) == 0
        out, err = capsys.readouterr()
        folder = "runs/00000-digits"
        assert out == f"weights: {folder}/weights.safetensors; report: {folder}/report.html\n"
        assert err == (
            "run: runs/00000-digits; if stopped, resume with `diffit train --run runs/00000-digits`\n"
            "without --run a job that SLURM requeues begins a new run; give --run FOLDER\n"
        )
        experiment = load_weights("runs/00000-digits/weights.safetensors")[1].experiment
        assert (experiment.training.max_steps, experiment.training.batch_size, experiment.network.channel_mult) == (
            2,
            8,
            (1, 1),
        )

        command = "sample runs/00000-digits/weights.safetensors --out=new --seeds=3-5,9 --classes=1,2,3,none --steps=3"
        assert main(command.split()) == 0
        assert capsys.readouterr().out == "images: new/images; seed, class and file of each: new/index.csv\n"
        names = {path.name for path in (tmp_path / "new").rglob("*.*")}
        images = {"000003.png", "000004.png", "000005.png", "000009.png"}
        assert names == images | {"grid.png", "index.csv", "settings.json"}

        assert main(["info", "runs/00000-digits/weights.safetensors"]) == 0
        assert "digits, trained on digits/train" in capsys.readouterr().out

    def test_a_report_that_fails_does_not_fail_the_run_and_can_be_left_out(self, capsys, monkeypatch):
        monkeypatch.setattr("diffit_lib.reports.html_report.write_report", lambda run: 1 / 0)
        words = ["train", "digits", "--max-steps=1", "--batch-size=8", "--run=run"]
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert out == "weights: run/weights.safetensors\n"
        assert "diffit: no report (division by zero); `diffit train --run run` writes it again\n" in err
        assert main([*words, "--no-report"]) == 0
        assert "no report" not in capsys.readouterr().err

    def test_info_lists_what_there_is(self, capsys):
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        names = set(re.findall(r"^  (\S+)  +\S", out, re.M))
        assert re.search("^  nvidia/diffit-256 .*; downloaded at first use$", out, re.M)
        assert re.search("^  meta/dit-xl-2-256 .*; needs its file$", out, re.M)
        assert names >= {*VERBS, *presets.PRESETS, *presets.VAE_PRESETS, "heun", "ddpm", "imagenette", "vae-digits"}

    def test_words_of_sample_become_numbers(self, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "diffit_lib.sampling.sample.sample", lambda *args, **options: calls.append((args, options)) or []
        )
        main(["sample", "tiny", "--classes=7", "--guidance=2", "--seeds=1", "--grid=4x2", "--trajectory"])
        main(
            ["sample", "tiny", "--classes=7,8", "--guidance=1,2.5", "--sampler=euler", "--per-class=3", "--format=npz"]
        )
        assert [args for args, _ in calls] == [("tiny", "samples", [1], "7"), ("tiny", "samples", None, "7,8")]
        usual = {"batch_size": 64, "protocol": "round"}
        first = {"per_class": None, "guidance": 2.0, "grid": (4, 2), "format": "png", "trajectory": True}
        second = {"per_class": 3, "guidance": [1.0, 2.5], "grid": None, "format": "npz", "trajectory": False}
        assert [options for _, options in calls] == [usual | first, usual | second | {"sampler": "euler"}]

    def test_options_come_from_a_file_too(self, tmp_path, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "diffit_lib.sampling.sample.sample", lambda *args, **options: calls.append((args, options)) or []
        )
        (tmp_path / "few.yaml").write_text(
            "seeds: 5\nclasses: [1, two]\nguidance: [1, 2]\ntrajectory: true\nsteps: 3\n"
        )
        main(["sample", "tiny", "--config=few.yaml", "--steps=4"])
        ((args, options),) = calls
        assert args[2:] == ([5], [1, "two"])
        assert (options["guidance"], options["trajectory"], options["steps"]) == ([1.0, 2.0], True, 4)

    def test_every_field_of_a_recipe_is_an_option_of_train(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--help"])
        assert stop.value.code == 0
        shown = set(re.findall(r"--([\w-]+)", capsys.readouterr().out))
        assert not any("_" in option for option in shown)
        options = {option.replace("-", "_") for option in shown}
        assert options >= {"data", "crop", "skip_bad"}
        for kinds in ExperimentConfig.PARTS.values():
            for kind in kinds:
                assert options >= set(kind.__dataclass_fields__)

    @pytest.mark.parametrize("verb", ["train", "train-vae", "evaluate", "sample"])
    def test_help_speaks_no_python(self, capsys, verb):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert not re.search(r"<function|0x[0-9a-f]{6}", capsys.readouterr().out)

    @pytest.mark.parametrize("verb", ["sample", "edit", "evaluate"])
    def test_sampling_options_are_the_weights_own_and_name_no_other_default(self, capsys, verb):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        first, title, group = capsys.readouterr().out.partition("sampling options (default: the weights' own")
        assert title
        assert not re.search(r"\[\w|\.\]", group)
        assert "--guidance GUIDANCE" in first + group

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_option_has_its_help(self, verb):
        sub = parser()._subcommands_action._name_parser_map[verb]
        assert [action.dest for action in sub._actions if not action.help] == []

    def test_version_is_the_packages(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--version"])
        assert (stop.value.code, capsys.readouterr().out) == (0, f"diffit {__version__}\n")

    def test_one_number_in_a_file_is_a_list_of_one(self, tmp_path):
        (tmp_path / "one.yaml").write_text("channel_mult: 1\n")
        given = parser().parse_args(["train", "digits", f"--config={tmp_path}/one.yaml"])
        assert given.train.channel_mult == (1,)

    def test_dashes_and_underscores_are_one(self):
        words = ["--batch-size=8", "--out=a-b", "--max-steps", "a-b", "-h", "sample"]
        assert [with_underscores(word) for word in words] == [
            "--batch_size=8", "--out=a-b", "--max_steps", "a-b", "-h", "sample",
        ]  # fmt: skip
        assert parser().parse_args(["train", "digits", "--batch_size=8"]).train.batch_size == 8

    @pytest.mark.parametrize("words", ["1,2,2", "[1,2,2]"])
    def test_several_numbers_are_joined_by_commas(self, words):
        assert parser().parse_args(["train", "digits", f"--channel_mult={words}"]).train.channel_mult == (1, 2, 2)

    def test_a_switch_needs_no_value(self):
        assert parser().parse_args(["train", "digits", "--flip"]).train.flip is True
        assert parser().parse_args(["train", "digits", "--flip=false"]).train.flip is False


class TestSeeds:
    def test_are_numbers_and_ranges(self):
        assert parse_seeds("0-3, 100,7-7") == [0, 1, 2, 3, 100, 7]

    @pytest.mark.parametrize("text", ["", ",", "1,", "3-1", "-3", "a", "1-2-3", "1.0", "1 2"])
    def test_anything_else_is_refused(self, text):
        with pytest.raises(DiffitError, match="give numbers and rising ranges"):
            parse_seeds(text)

    def test_more_than_memory_holds_are_refused(self):
        with pytest.raises(DiffitError, match="more than 10,000,000; give fewer"):
            parse_seeds("0-99999999999")


def test_ctrl_c_ends_without_a_traceback(monkeypatch, capsys):
    def interrupted(weights: str):
        """Draw."""
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "info", interrupted)
    assert main(["info", "digits"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [MemoryError("1 TB"), RuntimeError("can't allocate memory: 1 TB")])
def test_too_small_a_memory_is_one_line(monkeypatch, capsys, error):
    def too_large(weights: str):
        """Draw."""
        raise error

    monkeypatch.setitem(VERBS, "info", too_large)
    assert main(["info", "digits"]) == 2
    assert re.fullmatch(r"diffit: the memory is too small .*1 TB.*; give a smaller .*\n", capsys.readouterr().err)


def test_ctrl_c_while_the_command_line_is_imported_ends_without_a_traceback(monkeypatch):
    class Importing:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "diffit_lib.cli.main", Importing())
    assert run() == 130


def test_words_like_our_own_are_no_verb(capsys):
    assert main(["sample", "digits", "--batch-size", "'x' does not accept"]) == 2
    assert re.fullmatch("diffit: [^\n]+\n", capsys.readouterr().err)


def test_info_says_nothing_that_a_terminal_obeys(weights, tmp_path, capsys):
    denoiser, card = load_weights(weights)
    words = dict.fromkeys(("trained_on", "licence", "device"), "\x1b[31m\nx")
    names = tuple(f"\x1b[2J\n{name}" for name in card.class_names)
    experiment = replace(card.experiment, name="\x1b]0;t\x07")
    save_weights(tmp_path / "w.safetensors", replace(card, experiment=experiment, class_names=names, **words), denoiser)
    assert main(["info", "w.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 9


class TestStart:
    @pytest.mark.parametrize(
        "code",
        [
            "import diffit_lib",
            "from diffit_lib.cli.main import main; main(['--help'])",
            "from diffit_lib.cli.main import main; main(['train', '--help'])",
            "from diffit_lib.cli.main import main; main(['train', 'digits', '--width=0'])",
        ],
    )
    def test_needs_neither_torch_nor_anything_else_that_is_slow(self, code):
        """The words for import and help, for a mistake in the words too."""
        slow = {"torch", "pytorch_lightning", "matplotlib", "sklearn", "scipy"}
        script = f"import sys\ntry:\n    {code}\nfinally:\n    print('slow:', sorted({slow} & sys.modules.keys()))"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert done.stdout.endswith("slow: []\n")

    def test_by_module_name_is_the_same_command(self):
        done = subprocess.run([sys.executable, "-m", "diffit_lib", "draw"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("diffit: argument VERB: invalid choice: 'draw'")


def test_what_is_not_needed_to_draw_is_not_imported():
    slow = ("torch._dynamo", "pytorch_lightning", "torchvision", "sklearn", "ipywidgets")
    script = (
        "import sys\nfrom diffit_lib.cli.main import main\n"
        "main(['info', 'no-such-name']), main(['sample', 'digits', '--seeds=0-1', '--steps=2'])\n"
        f"print([name for name in {slow} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
