"""Machines that are not like ours: no home, other encodings, names that are no text, libraries that do not load."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from edgepack import user_folders
from edgepack.atomic_write import write_whole
from edgepack.checkpoint.folder import open_checkpoint
from edgepack.cli.console import fail
from edgepack.config import read_config
from edgepack.errors import EdgepackError, broken_library, is_missing
from edgepack.package.folder import list_files, open_package, refuse_existing
from edgepack.quant.recipes import load_recipe
from edgepack.system.child import child_process, end_in_words, import_folders
from edgepack.system.libraries import import_library
from edgepack.text.files import read_json
from edgepack_runtimes.cache import CACHE_VARIABLE, cache_root
from tests.support.paths import ROOT
from tests.support.tiny import TinyPackages

DEMO = ROOT / "edgepack" / "assets" / "demo"
PATHS = os.pathsep.join(str(ROOT / part) for part in (".", "converters", "runtimes"))
NOT_UTF8 = os.fsdecode(b"ba\xdfstelle")


def run(*command: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**os.environ, "PYTHONPATH": PATHS, **environment}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=variables, capture_output=True, check=False, timeout=120
    )


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As a user id without an entry: returns the folder for temporary files."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_cache_is_a_folder_of_this_user_alone(no_home: Path) -> None:
    root = cache_root()
    assert root == no_home / f"edgepack-cache-{os.getuid()}"
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    assert cache_root() == root  # and again


@pytest.mark.parametrize("trap", ["link", "open to all", "file", "of somebody else"])
def test_a_folder_that_somebody_else_may_have_put_there_is_not_used(
    trap: str, no_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = no_home / f"edgepack-cache-{os.getuid()}"
    if trap == "link":
        (no_home / "theirs").mkdir(mode=0o700)
        place.symlink_to("theirs")
    elif trap == "file":
        place.write_text("")
    else:
        place.mkdir(mode=0o700)
        if trap == "open to all":
            place.chmod(0o777)
        else:
            uid = os.getuid() + 1
            monkeypatch.setattr(os, "getuid", lambda: uid)
            place.rename(no_home / f"edgepack-cache-{uid}")
    with pytest.raises(EdgepackError, match=f"no home folder, .*: set {CACHE_VARIABLE} to a folder"):
        cache_root()


def test_neither_a_home_nor_a_temporary_folder(no_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(no_home / "nowhere"))
    with pytest.raises(EdgepackError, match=rf"no place for temporary files \(No such file.*set {CACHE_VARIABLE}"):
        cache_root()


def test_a_cache_whose_name_no_runtime_can_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / NOT_UTF8))
    with pytest.raises(EdgepackError, match=rf"cache folder \(of {CACHE_VARIABLE}.*ba\\xdfstelle, which is not UTF-8"):
        cache_root()
    user_folders.require_utf8(tmp_path / "Baustelle ß 東", "the package")


def test_arguments_that_are_no_text_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / NOT_UTF8).mkdir()
    for arguments in (
        ["plan", NOT_UTF8],
        ["generate", "package", "--prompt", NOT_UTF8],
        ["export", "a", "--out", NOT_UTF8],
    ):
        done = run("-m", "edgepack.cli.main", *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stdout == b""
        assert done.stderr.decode() == (
            r"error: argument 'ba\udcdfstelle' is not UTF-8: rename that file or folder, or make a link with a plain "
            "name; a text has to be written in UTF-8\n"
        )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:surrogateescape", "utf-8"])
def test_what_an_encoding_lacks_is_written_as_its_number_and_native_words_are_kept_out(encoding: str) -> None:
    script = (
        "import os, sys\n"
        "from edgepack.cli.console import keep_stdout, out, stdout_to_stderr\n"
        "keep_stdout()\n"
        "os.write(1, b'native')\n"
        'print(\'{"a": "\\u6771"}\')\n'
        "with stdout_to_stderr(): print(' library')\n"
        "out.print('\\u2026')\n"
    )
    done = run("-c", script, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == [b"native", b"library"]
    codec = encoding.partition(":")[0]
    assert done.stdout == '{"a": "東"}\n…\n'.encode(codec, "backslashreplace")


def test_a_choice_of_the_user_for_what_an_encoding_lacks_stays() -> None:
    script = "from edgepack.cli.console import keep_stdout\nkeep_stdout()\nprint('gr\\xfcn')"
    assert run("-c", script, PYTHONIOENCODING="ascii:replace").stdout == b"gr?n\n"


def test_a_verdict_in_another_encoding(tmp_path: Path) -> None:
    for target, code in (("2GB", 0), ("1MB", 1)):
        done = run("-m", "edgepack.cli.main", "plan", str(DEMO), "--target", target, PYTHONIOENCODING="ascii")
        assert done.returncode == code, done.stderr
        done.stdout.decode("ascii")


def test_an_error_line_is_bounded_and_shows_what_is_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fail("bad " + NOT_UTF8 + "\n" + "x" * 9000)
    assert caught.value.code == 2
    said = capfd.readouterr().err
    assert said.startswith(r"error: bad ba\xdfstelle xxx")
    assert said.count("\n") == 1
    assert len(said) < 2100


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_an_exit_code_is_true_where_stderr_cannot_be_written() -> None:
    command = f"exec {sys.executable} -m edgepack.cli.main plan nowhere 2>/dev/full"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "PYTHONPATH": PATHS}, check=False, timeout=60)
    assert done.returncode == 2


def test_a_child_is_asked_in_utf8_whatever_the_terminal_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-16")
    script = "import sys; print(sys.stdin.encoding, ascii(sys.stdin.readline()))"
    with tempfile.TemporaryFile() as question, tempfile.TemporaryFile() as errors:
        question.write("Grüße\n".encode())
        question.seek(0)
        with child_process([sys.executable, "-c", script], stdin=question, errors=errors) as process:
            assert process.stdout is not None
            assert process.stdout.read() == rb"utf-8 'Gr\xfc\xdfe\n'" + b"\n"


@pytest.fixture
def removed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    yield
    os.chdir(ROOT)


@pytest.mark.usefixtures("removed_folder")
def test_the_folder_that_one_stands_in_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", *sys.path])
    folders = import_folders()
    assert str(ROOT) in folders
    assert "relative" not in folders


def test_reports_through_links_and_on_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "report.json").symlink_to(Path("disk", "v1.json"))
    write_whole(tmp_path / "report.json", "first\n")
    assert (tmp_path / "report.json").is_symlink()
    assert (tmp_path / "disk" / "v1.json").read_text() == "first\n"

    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(tmp_path / "report.json", "second")
    assert (tmp_path / "disk" / "v1.json").read_text() == "first\n"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["v1.json"]


def test_a_library_that_is_there_and_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glibc_too_old.py").write_text('raise ImportError("libm.so.6: version `GLIBC_2.38\' not found")')
    (tmp_path / "part_is_missing.py").write_text("import no_such_part")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        EdgepackError, match=r"glibc_too_old is installed but cannot be loaded: .*GLIBC_2\.38' not found"
    ):
        import_library("glibc_too_old")
    with pytest.raises(EdgepackError, match=r"part_is_missing is installed but cannot be loaded: .*'no_such_part'"):
        import_library("part_is_missing")
    with pytest.raises(EdgepackError, match="no_such_library is not installed"):
        import_library("no_such_library")


def test_what_is_missing_and_what_is_broken() -> None:
    assert is_missing(ModuleNotFoundError("no", name="onnx_ir"), "onnx_ir")
    assert is_missing(ModuleNotFoundError("no", name="google.protobuf"), "google")
    assert not is_missing(ModuleNotFoundError("no", name="ml_dtypes"), "onnx_ir")
    assert not is_missing(ImportError("cannot open", name="onnx_ir"), "onnx_ir")
    error = ImportError("bad\nELF", name="onnxruntime.capi._state")
    assert str(broken_library(error)).startswith(
        "onnxruntime is installed but cannot be loaded: bad ELF; install it again"
    )
    assert "a library is installed" in str(broken_library(OSError("x")))


def test_export_and_load_tell_a_broken_library_from_a_missing_one(tmp_path: Path) -> None:
    script = (
        "import sys, edgepack\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in sys.argv[3:]:\n"
        "            raise ImportError(f'{name}.so: wrong ELF class', name=name)\n"
        "sys.meta_path.insert(0, Broken())\n"
        "for step in (lambda: edgepack.export(sys.argv[1], out=sys.argv[2], recipe='int8', context=64),\n"
        "        lambda: edgepack.load(sys.argv[2])):\n"
        "    try: step()\n"
        "    except edgepack.errors.EdgepackError as error: print(error)\n"
    )
    package = str(tmp_path / "package")
    for broken in ("onnx_ir", "onnxruntime"):
        done = run("-c", script, str(DEMO), package, broken)
        said = done.stdout.decode().splitlines()
        assert f"{broken} is installed but cannot be loaded: {broken}.so: wrong ELF class" in said[0], done.stderr


def test_an_instruction_that_the_processor_lacks() -> None:
    assert end_in_words(-4) == (
        "killed by signal 4 (SIGILL), which is how a library ends that needs instructions which this CPU lacks,"
    )


def test_onnx_runtime_says_nothing_on_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # A name that is no UTF-8 in its message makes a ValueError of the refusal, which it would try again, and say so.
    onnx_runtime = pytest.importorskip("edgepack_runtimes.onnx.runtime")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "no.bin"), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "broken.onnx").write_bytes(model.SerializeToString().replace(b"no.bin", b"\xff\xfe.bin"))
    # Without a locale of UTF-8 the library gives no more than the name of its error.
    with pytest.raises(
        EdgepackError, match=r"broken\.onnx cannot be loaded by onnxruntime .*(External data path|Fail)"
    ):
        onnx_runtime.open_session(tmp_path / "broken.onnx", 1, optimized=False)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", ["y" * 5000, "org/" + "y" * 5000])
def test_names_that_the_system_refuses(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "edgepack.toml").write_text(f'[export]\ncheckpoint = "{name}"\n[validate]\nreference = "{name}"\n')
    assert read_config(tmp_path / "edgepack.toml").export.checkpoint == name
    refuse_existing(Path(name), overwrite=False)  # it does not exist: what is wrong is told where it is made
    for use in (open_checkpoint, load_recipe, open_package):
        with pytest.raises(EdgepackError):
            use(name)


@pytest.mark.parametrize("name", [os.fsdecode(b"tokenizer\xff.txt"), "tokenizer\n.txt"])
def test_a_file_of_the_checkpoint_whose_name_is_no_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(EdgepackError, match=r"the file 'tokenizer.*\.txt' of the checkpoint has no name for a package"):
        list_files(tmp_path, 1)


def test_half_a_character_in_a_file_of_the_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(r'{"bos_token": "\uD800", "eos_token": "\ud83d\ude00"}')
    with pytest.raises(EdgepackError, match=r"tokenizer_config\.json: not valid JSON: .*half of a surrogate"):
        read_json(tmp_path / "tokenizer_config.json")
    (tmp_path / "tokenizer_config.json").write_text(r'{"eos_token": "\ud83d\ude00"}')
    assert read_json(tmp_path / "tokenizer_config.json") == {"eos_token": "😀"}


@pytest.mark.parametrize(("words", "code"), [(["plan", "demo", "--target", "2GB"], 0), (["plan", "nowhere-at-all"], 2)])
def test_nobody_reads_the_errors(words: list[str], code: int) -> None:
    command = [sys.executable, "-m", "edgepack", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command, env=environment, stdout=writer, stderr=writer, check=False)
    finally:
        os.close(writer)
    assert done.returncode == code
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=full, check=False)
    assert done.returncode == code


def test_a_signal_while_python_imports_is_one_line() -> None:
    # The import of numpy stands for all of them: it sends the signal to the process that waits for it.
    code = (
        "import builtins, os, signal, sys; real = builtins.__import__\n"
        "def late(name, *given):\n"
        "    if name == 'numpy': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *given)\n"
        "builtins.__import__ = late\n"
        "from edgepack.__main__ import main; sys.argv = ['edgepack', 'plan', 'demo']; main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted: nothing was written\n")


def test_an_answer_that_nobody_reads_any_more_ends(tiny_packages: TinyPackages) -> None:
    package = tiny_packages("gemma3").package.path
    script = f"'{sys.executable}' -m edgepack generate '{package}' --token-ids 2,7 --max-new-tokens 100 | head -c 2"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    told = re.search(r"stopped after (\d+) pieces: nobody reads", done.stderr)
    assert told is not None and int(told[1]) < 100, done.stderr
