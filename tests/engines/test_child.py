"""However a child ends, what it said is kept and the end is a word."""

import sys
import time

import pytest

from spoco_zoo.engines.child import first_line, run_child


@pytest.fixture
def run(tmp_path):
    """Run lines of Python as a child."""

    def start(code, timeout=30.0, variables=None):
        words = [sys.executable, "-c", code]
        return run_child(words, tmp_path, timeout=timeout, variables=variables)

    return start


def test_lines_of_json_are_kept_and_all_others_passed_over(run):
    ending = run('print("noise"); print(\'{"a": 1}\'); print("{half"); print(\'{"b": [2]}\')')
    assert ending.lines == ({"a": 1}, {"b": [2]})
    assert ending.trouble is None


def test_it_works_in_its_folder_with_the_variables_given(run, tmp_path):
    code = "import os, json; print(json.dumps({'cwd': os.getcwd(), 'word': os.environ['WORD']}))"
    assert run(code, variables={"WORD": "x"}).lines == ({"cwd": str(tmp_path), "word": "x"},)


def test_a_child_that_does_not_end_is_ended_and_its_lines_are_kept(run):
    start = time.monotonic()
    ending = run("print('{\"a\": 1}', flush=True); import time; time.sleep(60)", timeout=2.0)
    assert time.monotonic() - start < 20
    assert ending.lines == ({"a": 1},)
    assert ending.trouble == "it did not end within 2 s"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_a_signal_is_named(run, name):
    code = (
        f"import os, signal; print('{{\"a\": 1}}', flush=True); os.kill(os.getpid(), signal.{name})"
    )
    ending = run(code)
    assert ending.lines == ({"a": 1},)
    assert ending.trouble == f"it was ended by {name}, perhaps for want of memory"


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        ("raise KeyError('word')", "KeyError: 'word'"),
        (
            "import sys; sys.exit('WARNING: a\\nERROR: it is not there.\\nERROR: so much for it')",
            "ERROR: it is not there",
        ),
        ("import sys; sys.exit('npm warn a\\nnpm error code E404')", "npm error code E404"),
        ("import sys; sys.exit(3)", "it ended with code 3 and no word"),
    ],
)
def test_an_exit_code_comes_with_what_was_said(run, code, trouble):
    assert run(code).trouble == trouble


def test_a_program_that_is_not_there_is_a_word_too(tmp_path):
    ending = run_child([tmp_path / "none"], tmp_path, timeout=1.0)
    assert ending.trouble == f"{tmp_path}/none cannot be started: No such file or directory"
    assert ending.lines == ()


def test_a_reason_is_one_line_of_a_length_to_read():
    assert first_line("\n  \n first. \n second") == "first"
    assert first_line("x" * 300 + ".") == "x" * 300
    assert first_line("x" * 999 + "y.") == "x" * 100 + " ... " + "x" * 149 + "y"
    assert first_line(" \n") == ""
