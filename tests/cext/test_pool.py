"""The core's own threads (cext/pool.c) under the thread sanitizer: many short regions of several calling threads."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

CEXT = Path(__file__).resolve().parents[2] / "cext"
PROGRAM = r"""
#include "dispatch.h"
#ifndef OCTO_POOL
#error no pool
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int member[4]; /* regions in which a worker took part, by calling thread */

static void *calls(void *argument) {
    int self = (int)(intptr_t)argument, threads = 2 + self % 3;
    long cells[40] = {0}, found = 0, expected = 0;
    for (int r = 0; r < 3000; r++) {
        int64_t next = 0, count = 1 + r % 40;
#pragma omp parallel num_threads(threads)
        for (int64_t i; (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) {
            cells[i] += i + r;
            if (octo_member()) __atomic_add_fetch(member + self, 1, __ATOMIC_RELAXED);
            if (r % 100 == 0) usleep(200); /* long enough for workers to come */
        }
        if (r % 100 == 50) usleep(200); /* long enough for workers to sleep */
        for (int i = 0; i < count; i++) expected += i + r;
    }
    for (int i = 0; i < 40; i++) found += cells[i];
    if (found != expected) exit(1);
    return NULL;
}

int main(void) {
    octo_start_pools();
    for (int turn = 0; turn < 3; turn++) {
        pthread_t callers[4];
        for (int i = 0; i < 4; i++) pthread_create(callers + i, NULL, calls, (void *)(intptr_t)i);
        for (int i = 0; i < 4; i++) pthread_join(callers[i], NULL);
    }
    for (int i = 0; i < 4; i++)
        if (!member[i]) return 2;
    return 0;
}
"""


@pytest.mark.skipif(platform.system() != "Linux" or not shutil.which("gcc"), reason="the pool is gcc's on Linux")
def test_regions_of_several_threads(tmp_path: Path) -> None:
    """Every index is computed once, by workers too, and a region has ended when the call returns; no data race."""
    (tmp_path / "main.c").write_text(PROGRAM)
    files = [str(CEXT / "pool.c"), str(tmp_path / "main.c")]
    for flags in (["-O2"], ["-O1", "-g", "-fsanitize=thread"]):
        program = tmp_path / "main"
        command = ["gcc", "-fopenmp", *flags, f"-I{CEXT}", *files, "-o", str(program)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and ("no pool" in done.stderr or "tsan" in done.stderr):
            pytest.skip(done.stderr.splitlines()[-1])
        assert not done.returncode, done.stderr
        ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=120)
        if "unexpected memory mapping" in ran.stderr:
            pytest.skip("the sanitizer cannot run with this kernel's address randomization")
        assert ran.returncode == 0 and "WARNING: ThreadSanitizer" not in ran.stderr, (flags, ran.returncode, ran.stderr[-2000:])
