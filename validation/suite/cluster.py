"""Entries on a Dask cluster that exists: on one machine, or on many under a queueing system.

The scheduler hands entries to its workers; each worker watches a process for its entry, exactly as on one
machine, and sends the record and the figure back.  Only this process writes to the run folder.  A Dask worker
that dies takes nothing along: its entry is given to another one, until it has brought down several (the
scheduler's ``allowed-failures``, 3), and then that is its result.

Machines see the checkout at the same path (and the entries, where they are in a folder); otherwise they need
nothing in common.  :func:`job_script` shows what dask-jobqueue submits to SLURM.
"""

from __future__ import annotations

import uuid

from libtbx.utils import Sorry

_CONNECT_SECONDS = 30
_LOOK_SECONDS = 5.0


def compute(jobs, address, record):
    """Jobs on the cluster of this scheduler; ``record`` gets each outcome as it arrives.

    Raises
    ------
    libtbx.utils.Sorry
        When there is no dask, no scheduler, or no worker that has the suite.
    """
    try:
        import distributed
    except ImportError:
        raise Sorry("--scheduler needs dask: pip install 'mmtbx_sfdiff[cluster]'.") from None
    from . import supervise

    name = f"mmtbx_sfdiff-{uuid.uuid4()}"
    try:
        client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=True)
    except (OSError, TimeoutError, ValueError) as error:
        raise Sorry(f"No Dask scheduler answers at {address} ({error}): start one, or correct --scheduler.") from None
    with client:
        stop = distributed.Event(name, client=client)
        futures = {}
        try:
            if not jobs:
                return
            _check(client, jobs[0]["checkout"])
            content = _by_value(_task, supervise)

            # Nested functions travel by value: neither the scheduler nor the workers need find this module.
            def task(job):
                import cloudpickle

                return cloudpickle.loads(content)(job, name)

            for job in jobs:
                futures[client.submit(task, job, key=f"{name}-{job['entry']}", pure=False)] = job
            for future in distributed.as_completed(futures):
                record(_outcome(future, futures[future], supervise.OutOfDisk, distributed.KilledWorker))
                future.release()
        except BaseException:
            stop.set()  # workers look for it, and end the processes that they watch
            raise
        finally:
            client.cancel(list(futures), force=True)


def _by_value(function, module):
    """A function with the classes that a module offers it, as bytes that need nothing but Python."""
    import functools
    import sys

    import cloudpickle

    modules = module, sys.modules[__name__]
    for each in modules:
        cloudpickle.register_pickle_by_value(each)
    try:
        return cloudpickle.dumps(functools.partial(function, module.Supervised, module.OutOfDisk))
    finally:
        for each in modules:
            cloudpickle.unregister_pickle_by_value(each)


def _task(supervised, out_of_disk, job, stop_name):
    """On a Dask worker: one entry; (record, files), or the words of a worker that had no room."""
    import errno
    import time

    import distributed

    stop = distributed.Event(stop_name)
    looked = [time.monotonic()]

    def stopped():
        if time.monotonic() - looked[0] < _LOOK_SECONDS:
            return False
        looked[0] = time.monotonic()
        return stop.is_set()

    try:
        return supervised(job).wait(stop=stopped)
    except out_of_disk as error:
        return str(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return str(error)


def _outcome(future, job, out_of_disk, killed):
    try:
        outcome = future.result()
    except killed:
        outcome = _failed(job, "crash", "every Dask worker that had it died")
    except Exception as error:
        outcome = _failed(job, "cluster", " ".join(f"{type(error).__name__}: {error}".split())[:500])
    if isinstance(outcome, str):
        raise out_of_disk([outcome])
    return outcome


def _failed(job, kind, reason):
    return {
        "entry": job["entry"],
        "status": "failed",
        "kind": kind,
        "reason": reason,
        "step": None,
        "wall_s": 0.0,
        "cpu_s": 0.0,
        "peak_bytes": 0,
        "started": 0,
        "host": "",
        "log": "",
    }, {}


def _check(client, checkout):
    """Whether the workers have the checkout; said before any work is handed out."""

    def has():
        import os

        return os.path.isfile(os.path.join(checkout, "validation", "suite", "worker.py"))

    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS * 20)
    except TimeoutError:
        raise Sorry(f"No Dask worker joined the scheduler within {_CONNECT_SECONDS * 20:g} s: start some.") from None
    without = [worker for worker, found in client.run(has).items() if not found]
    if without:
        raise Sorry(
            f"The Dask worker {without[0]} does not see {checkout}: put the checkout where all machines see it, "
            "at the same path."
        )


def slurm_cluster(cores=8, memory="32GB", walltime="04:00:00", **options):
    """A SLURMCluster with one watched process for each core.

    Parameters
    ----------
    cores : int
        Of a job; it works at so many entries at a time.
    memory : str
        Of a job; 4 GB for each entry.
    walltime : str
    **options
        Handed on: ``queue``, ``account``, ``job_script_prologue``, ``log_directory``, ``interface``, ...

    Returns
    -------
    dask_jobqueue.SLURMCluster
    """
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(cores=cores, processes=1, memory=memory, walltime=walltime, **options)


def job_script(**options):
    """What :func:`slurm_cluster` submits, as text; nothing is submitted."""
    with slurm_cluster(**options) as cluster:
        return cluster.job_script()
