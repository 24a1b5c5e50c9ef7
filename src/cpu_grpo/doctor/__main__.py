"""Says whether everything is in place for a run: `python -m cpu_grpo.doctor`.

A line for each thing: ok; warn, where runs work less well; FAIL, where they do not work. Below a warn or FAIL stands
the command that mends it. Nothing is trained, downloaded or changed, but kernels are compiled if they have not been
yet. Ends with code 1 if there is a FAIL.
"""

import argparse
import sys

OLDEST = (3, 11)


def main(arguments: list[str]) -> int:
    """Prints the findings; returns the exit code."""
    argparse.ArgumentParser(
        prog="python -m cpu_grpo.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    if sys.version_info < OLDEST:
        found = "{}.{}".format(*sys.version_info[:2])
        print(f"FAIL  python: {found} is older than {OLDEST[0]}.{OLDEST[1]}, which TRL needs")
        print("      fix: make PYTHON=python3.11 test")
        return 1
    from cpu_grpo.config.compose import sentences
    from cpu_grpo.doctor.checks import checks
    from cpu_grpo.doctor.finding import examined, line

    failed = False
    with sentences():
        for what, check in checks():
            finding = examined(check)
            failed |= finding.state == "FAIL"
            print(line(what, finding), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
