"""Faults to seed into the offline job and its command; entries as in `faults`."""

_SHARED, _RESUME = "tests/batch/test_batch_shared.py", "tests/batch/test_batch_resume.py"
_MANIFEST, _CRASH = "tests/batch/test_batch_manifest.py", "tests/batch/test_batch_crash.py"
_FILES, _SIGNALS = "tests/batch/test_batch_files.py", "tests/engine/test_signals.py"

BATCH_FAULTS = {
    # How files are made, locked and named.
    "locks_are_shared": (
        "batch/folders.py",
        "fcntl.flock(descriptor, fcntl.LOCK_EX |",
        "fcntl.flock(descriptor, fcntl.LOCK_SH |",
        f"{_SHARED} -k second_job",
    ),
    "files_are_made_where_something_is": (
        "batch/folders.py",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL",
        "os.O_RDWR | os.O_CREAT",
        f"{_SHARED} -k made_only",
    ),
    "links_are_followed": (
        "batch/folders.py",
        "os.O_CLOEXEC | os.O_NOFOLLOW |",
        "os.O_CLOEXEC |",
        f"{_SHARED} -k planted",
    ),
    "named_outputs_are_anybodys": (
        "batch/folders.py",
        "        if not _locked(descriptor, folder.join(name)):\n",
        "        if not name:\n",
        f"{_SHARED} -k before_its_job",
    ),
    "hard_links_are_written_through": (
        "batch/folders.py",
        "        if names > 1:\n",
        "        if names > 2:\n",
        f"{_SHARED} -k planted_before",
    ),
    "whatever_has_the_name_is_named": (
        "batch/folders.py",
        '            (f"/proc/self/fd/{self.descriptor}", {"dst_dir_fd": folder}),\n',
        "",
        f"{_SHARED} -k swapped",
    ),
    "a_file_that_is_gone_is_written_on": (
        "batch/writers.py",
        "        self._held.sync()\n        self._held.check()\n",
        "        self._held.sync()\n",
        f"{_SHARED} -k taken_away",
    ),
    "a_moved_folder_is_where_it_was": (
        "batch/folders.py",
        "if os.path.samestat(os.stat(self.path), os.fstat(self.descriptor)):",
        "if self.path:",
        f"{_SHARED} -k moved",
    ),
    "files_are_made_before_they_are_claimed": (
        "batch/unfinished.py",
        """        self.manifest.start(description)
        self._sync_folders()
        self._create()
""",
        """        self._create()
        self.manifest.start(description)
        self._sync_folders()
""",
        f"{_CRASH} -k kill",
    ),
    # What a resumed job believes.
    "a_damaged_header_stays": (
        "batch/writers.py",
        "        if not whole:\n",
        "        if whole is None:\n",
        f"{_RESUME} -k damaged_header",
    ),
    "nobody_looks_at_the_header_in_the_end": (
        "batch/writers.py",
        "self._held.status.st_size != self.nbytes or not self._has_its_header()",
        "self._held.status.st_size != self.nbytes",
        f"{_RESUME} -k by_others",
    ),
    "inputs_are_known_by_their_sizes": (
        "batch/readers.py",
        '"content": self.content,',
        '"content": "0" * 64,',
        f"{_RESUME} -k changed_inputs",
    ),
    "the_end_of_a_large_input_is_not_looked_at": (
        "batch/readers.py",
        "(size - length) * index // (_DIGEST_PIECES - 1)",
        "(size - length) * index // _DIGEST_PIECES",
        f"{_RESUME} -k by_pieces",
    ),
    "the_time_of_an_input_counts": (
        "batch/manifest.py",
        'same = key == "mtime_ns" and key in found and key in recorded',
        "same = False",
        f"{_RESUME} -k copied_or_touched",
    ),
    "true_passes_for_1": (
        "batch/schema.py",
        "type(value) is not int or not lowest",
        "not isinstance(value, int) or not lowest",
        f"{_MANIFEST} -k makes_no_sense",
    ),
    "unknown_fields_pass": (
        "batch/schema.py",
        "            if name not in known:\n",
        "            if name not in known:\n                continue\n            if not known:\n",
        f"{_MANIFEST} -k makes_no_sense",
    ),
    "borders_are_believed": (
        "batch/borders.py",
        "        if self.size > extents[self.axis]:\n",
        "        if self.size < 0:\n",
        f"{_MANIFEST} -k makes_no_sense",
    ),
    "more_records_than_chunks_pass": (
        "batch/manifest.py",
        "                    if len(records) == most:\n",
        "                    if len(records) < 0:\n",
        f"{_MANIFEST} -k more_records",
    ),
    "manifests_are_read_whole": (
        "batch/manifest.py",
        "_JOB_BYTES = 1 << 20",
        "_JOB_BYTES = 1 << 24",
        f"{_MANIFEST} -k huge",
    ),
    # What is said.
    "quotes_are_as_long_as_they_are": (
        "batch/errors.py",
        "text if len(text) <= most else",
        "text if text else",
        f"{_FILES} -k damaged_files",
    ),
    "quotes_may_move_the_cursor": (
        "batch/errors.py",
        "c if c.isprintable() and c.isascii() else ascii(c)[1:-1]",
        "c",
        f"{_MANIFEST} -k makes_no_sense",
    ),
    "an_unfinished_job_is_nothing": (
        "batch/unfinished.py",
        'return kept if there else "nothing was left behind"',
        'return "nothing was left behind"',
        f"{_RESUME} -k ctrl_c_before_a_resume",
    ),
    "lost_chunks_are_kept": (
        "batch/runner.py",
        "        except (UsageError, Refused):\n",
        "        except UsageError:\n",
        f"{_RESUME} -k gone_or_cut",
    ),
    "ctrl_c_at_the_start_is_a_traceback": (
        "__init__.py",
        "_guard_start()  # before",
        "# before",
        f"{_SIGNALS} -k starts",
    ),
    "ctrl_c_at_the_end_kills": (
        "start.py",
        "        signal.signal(signal.SIGINT, signal.SIG_IGN)\n",
        "        pass\n",
        f"{_SIGNALS} -k all_is_done",
    ),
    "the_command_has_another_name_at_its_end": (
        "start.py",
        "    if _guarded and signal",
        "    if _is_command() and signal",
        f"{_SIGNALS} -k all_is_done",
    ),
    "an_interrupted_exec_is_remembered": (
        "start.py",
        '    exec("")\n',
        "",
        f"{_SIGNALS} -k left_an_exec",
    ),
    "the_library_answers_ctrl_c_itself": (
        "start.py",
        "    if not _is_command():\n        return\n",
        "",
        f"{_SIGNALS} -k library",
    ),
}
