"""A run that is asked to stop, that diverges, or whose disk is full, keeps what it has and goes on from there."""

import os
import resource
import signal
import subprocess
import sys
import threading

import chex
import jax
import kill_resume
import optax
import pytest
from noise_experiment import EXPERIMENT, digest, write_data
from test_train import DATA, FRAME, SMALL, run, untimed

from cnnjax.experiment import main
from cnnjax.models.chain import chain
from cnnjax.models.layers import Dense
from cnnjax.train import checkpoint, journal, loop, optim, parallel
from cnnjax.train.feed import Prepare
from cnnjax.train.interrupt import Interrupted, postponed
from cnnjax.train.metrics import read
from cnnjax.train.recipe import SGD, Drops, Recipe, transformation
from cnnjax.train.state import create
from cnnjax.variant import Diverged, Variant, train

TX = optax.chain(optim.sgd(optim.step_decay(0.1, (5,)), momentum=0.9), optim.plateau())
HOW = {"tx": TX, "ema_decay": 0.9, "steps": 12, "log_every": 4, "eval_every": 6, "save_every": 5}


@pytest.fixture
def at_step(monkeypatch):
    """Arranges that something is done when step `number` of a call of `fit` begins."""

    def arrange(number, action):
        def stream(*arguments, inner=loop.stream, **how):
            for i, examples in enumerate(inner(*arguments, **how), start=1):
                if i == number:
                    action()
                yield examples

        monkeypatch.setattr(loop, "stream", stream)

    yield arrange
    monkeypatch.undo()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 2, 4, 5, 6, 7, 9, 10, 11, 12])
def test_a_signal_at_any_step_costs_nothing(number, step, tmp_path, at_step, monkeypatch):
    handler = signal.getsignal(number)
    at_step(step, lambda: signal.raise_signal(number))
    with pytest.raises(Interrupted) as stop:
        run(tmp_path, **HOW)
    assert stop.value.signal == number and stop.value.exit_code == 128 + number
    assert str(stop.value) == f"{number.name}: stopped after step {step}, which is saved"
    assert checkpoint.latest(checkpoint.Checkpoints(tmp_path / "checkpoints")) == step
    assert signal.getsignal(number) == handler
    monkeypatch.undo()
    assert_ends_like_an_undisturbed_run(tmp_path)


def assert_ends_like_an_undisturbed_run(folder):
    whole, resumed = run(**HOW), run(folder, **HOW)
    assert digest(resumed.state) == digest(whole.state)
    assert untimed(read(folder / "metrics.jsonl")) == untimed(whole.history) == untimed(resumed.history)


def test_a_signal_during_the_last_evaluation_is_heard_when_all_is_kept(tmp_path, monkeypatch):
    evaluate = loop.evaluate

    def interrupted(*arguments, **how):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*arguments, **how)

    run(tmp_path, **HOW)
    (tmp_path / "metrics.jsonl").unlink()  # so that a finished run is evaluated once more
    monkeypatch.setattr(loop, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, **HOW)
    assert "test" in read(tmp_path / "metrics.jsonl")[-1]


def test_where_nothing_is_kept_ctrl_c_is_an_exception_like_everywhere(at_step):
    at_step(3, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as stop:
        run(**HOW)
    assert not isinstance(stop.value, Interrupted)


def test_signals_that_are_ignored_stay_ignored(tmp_path, at_step):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        at_step(3, lambda: signal.raise_signal(signal.SIGTERM))
        assert run(tmp_path, **HOW).state.step == 12
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_in_another_thread_a_run_leaves_the_signals_alone(tmp_path):
    handlers, ended = [], []

    def work():
        run(tmp_path, **HOW, on_log=lambda row: handlers.append(signal.getsignal(signal.SIGINT)))
        ended.append(True)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ended and set(handlers) == {before}


def test_a_second_signal_ends_a_process_that_is_deep_in_a_library():
    code = (
        "import hashlib\nfrom cnnjax.train.interrupt import postponed\n"
        "with postponed():\n  print('ready', flush=True)\n  hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**9)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            process.send_signal(signal.SIGINT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=5) == 143
        finally:
            process.kill()


def test_many_signals_that_nobody_asked_about_are_no_requests_to_stop():
    heard = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
    try:
        with postponed() as came:
            for _ in range(5):
                signal.raise_signal(signal.SIGUSR1)
        assert heard == [1] * 5 and came == []
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert signal.set_wakeup_fd(-1) == -1


def test_the_device_is_never_many_steps_behind(monkeypatch):
    """Or a run that is asked to stop would compute all of them first."""
    step, losses, late = parallel.advance, [], []

    def called(*arguments, **how):
        late.append(sum(not loss.is_ready() for loss in losses))
        state, metrics = step(*arguments, **how)
        losses.append(metrics["loss"])
        return state, metrics

    net = chain(fc1=Dense(900), fc2=Dense(900), fc3=Dense(3, act=None))
    how = {"steps": 30, "log_every": 30, "eval_every": None, "save_every": None}
    run(net=net, tx=TX, **how)  # compiled
    monkeypatch.setattr(parallel, "advance", called)
    run(net=net, tx=TX, **how)
    assert max(late) <= 3


# --- what is kept


def test_the_best_checkpoint_is_kept_and_found_again(tmp_path):
    """At every evaluation, whether or not a save is due there."""
    tx = optim.sgd(optim.piecewise((0.3, 10.0), (12,)))  # good at first, then ruined
    done = run(tmp_path, tx=tx, steps=25, eval_every=3, save_every=1000, keep_best=True)
    errors = {row["step"]: row["test"]["error"] for row in done.history if "test" in row}
    saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
    best = min(errors, key=errors.__getitem__)
    assert checkpoint.best(saved) == best == 9 and checkpoint.latest(saved) == 25
    assert checkpoint.facts(saved, best)["error"] == errors[best]
    again = run(steps=best, tx=tx, eval_every=3)
    assert digest(checkpoint.restore(saved, best, again.state)) == digest(again.state)


def test_a_damaged_checkpoint_costs_only_time(tmp_path, capfd):
    run(tmp_path, **HOW)
    (tmp_path / "checkpoints" / "12" / "facts.json").write_text("{}")
    assert_ends_like_an_undisturbed_run(tmp_path)
    assert capfd.readouterr().err.count("\n") == 1
    for step in (10, 12):
        (tmp_path / "checkpoints" / str(step) / "facts.json").write_text("{}")
    assert_ends_like_an_undisturbed_run(tmp_path)
    assert capfd.readouterr().err.count("\n") == 2


def test_a_run_goes_on_after_its_disk_was_full(tmp_path, at_step, monkeypatch, capfd):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(10, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2500, hard)))
    try:
        with pytest.raises(checkpoint.NotSaved, match="checkpoint 5 is there"):
            run(tmp_path, **HOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capfd.readouterr().err == ""
    monkeypatch.undo()
    assert_ends_like_an_undisturbed_run(tmp_path)


# --- what a command line says of it


@pytest.fixture
def command(tmp_path, capfd):
    """Calls the noise experiment's command line in a folder; its exit code, and its lines on stdout and stderr."""
    source = write_data(tmp_path / "noise.npz")

    def call(folder, *options):
        code = 0
        try:
            main(EXPERIMENT, [*map(str, ("--data", source, "--workdir", folder, "--save-every", 60, *options))])
        except SystemExit as stop:
            code = stop.code
        out, err = capfd.readouterr()
        return code, out.splitlines(), err.splitlines()

    return call


def sha(lines):
    return next(line for line in lines if line.startswith("sha256"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_line_says_how_to_go_on_after_a_signal(number, code, tmp_path, command, at_step, monkeypatch):
    at_step(50, lambda: signal.raise_signal(number))
    stopped, _, said = command(tmp_path / "run")
    assert stopped == code
    assert said == [f"{number.name}: stopped after step 50, which is saved; the same command goes on from here"]
    monkeypatch.undo()
    (ended, out, said), (_, calm, _) = command(tmp_path / "run"), command(tmp_path / "calm")
    assert ended == 0 and said == [] and sha(out) == sha(calm)
    assert kill_resume.rows_of(tmp_path / "run") == kill_resume.rows_of(tmp_path / "calm")


def test_sigterm_outside_a_training_exits_with_143_as_well(tmp_path, command, monkeypatch):
    monkeypatch.setattr("cnnjax.runfolder.write_json", lambda *_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    code, _, said = command(tmp_path / "run")
    assert code == 143 and said == ["SIGTERM: interrupted; the same command goes on from here"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_loss_that_is_not_finite_exits_with_3_and_leaves_what_is_finite(tmp_path, command):
    """The step that ruins the parameters is seen by the loss after it, and at most one log interval later."""
    code, _, said = command(tmp_path / "run", "--explode-at", 170)
    assert code == 3 and len(said) <= 3
    step = int(said[0].split("at step ")[1])
    assert 171 <= step <= 175
    saved = checkpoint.Checkpoints(tmp_path / "run" / "net" / "seed-0" / "checkpoints")
    assert checkpoint.latest(saved) == 120
    assert command(tmp_path / "run", "--explode-at", 170)[0] == 3
    steps = [row["step"] for row in kill_resume.rows_of(tmp_path / "run")]
    assert steps == sorted(steps) and steps[-1] == 170


def test_the_last_finite_checkpoint_of_an_experiments_training_can_be_loaded(tmp_path):
    """Through the training that experiments share."""
    recipe = Recipe(
        batch=8,
        iterations=1200,
        schedule=Drops((0.01, 1e30), (1100 / 1200,)),
        optimiser=SGD(),
        prepare=Prepare(FRAME),
    )
    tx = transformation(recipe, 1200)
    with pytest.raises(Diverged, match="not finite at step 11") as error:
        train(Variant(net=SMALL, recipe=recipe), DATA, 0, tmp_path, lambda row: None)
    assert error.value.exit_code == 3
    saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
    assert checkpoint.latest(saved) == 1008  # the first row after 1000 steps: there is one every 12
    like = jax.device_put(create(SMALL, tx, jax.random.key(0), (8, 8, 1)), jax.devices()[0])
    kept = checkpoint.restore(saved, 1008, like)
    chex.assert_tree_all_finite((kept.params, kept.stats))


def test_a_full_disk_exits_with_74_and_a_few_lines(tmp_path, command, at_step, monkeypatch):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    at_step(100, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, hard)))
    try:
        code, _, said = command(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 74 and 1 <= len(said) <= 2 and "File too large" in said[0], said
    monkeypatch.undo()
    (code, out, _), (_, calm, _) = command(tmp_path / "run"), command(tmp_path / "calm")
    assert code == 0 and sha(out) == sha(calm)


def test_a_disk_without_room_for_a_row_exits_with_74(tmp_path, command, monkeypatch):
    def full(path, row):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(journal, "append", full)
    code, _, said = command(tmp_path / "run")
    assert code == 74 and len(said) == 2 and "metrics.jsonl: No space left on device" in said[0]


def test_a_disk_that_fills_up_is_told_in_two_lines_and_costs_no_checkpoint(tmp_path, command, at_step, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user cannot mount: {done.stderr.strip()}")
    try:
        at_step(100, lambda: signal.raise_signal(signal.SIGTERM))
        assert command(disk / "run")[0] == 143
        monkeypatch.undo()
        room = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - 24_000))
        code, _, said = command(disk / "run")
        assert code == 74 and len(said) == 2, said
        assert "No space left on device; it needs about 0.0 MB" in said[0] and "checkpoint 100 is there" in said[1]
        (disk / "filler").unlink()
        (code, out, said), (_, calm, _) = command(disk / "run"), command(tmp_path / "calm")
        assert code == 0 and said == [] and sha(out) == sha(calm)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.long
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_process_that_is_asked_to_stop_at_any_moment_comes_to_the_same_end(name):
    hits, torn, same = kill_resume.compare(2, name)
    assert hits == 2 and torn == 0 and same
