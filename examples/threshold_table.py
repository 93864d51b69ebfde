"""Show the share of early exits at each threshold, and the share of unchanged answers.

The answer to compare with is that of both stages, at `eta=1`:
    python examples/threshold_table.py bundle pictures/*.jpg
"""

from __future__ import annotations

import argparse

import sacvit_deploy


def main() -> None:
    """Print one row per threshold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--eta", type=float, nargs="+", default=[0.3, 0.5, 0.7, 0.9])
    arguments = parser.parse_args()

    pipeline = sacvit_deploy.load(arguments.bundle)
    refined = pipeline(arguments.pictures, eta=1.0)
    print("  eta  exited early  same answer as the second stage")
    for eta in arguments.eta:
        results = pipeline(arguments.pictures, eta=eta)
        early = sum(result.target_tokens is None for result in results)
        same = sum(a.class_index == b.class_index for a, b in zip(results, refined, strict=True))
        print(f"{eta:5.3f}  {early / len(results):10.1%}  {same / len(results):.1%}")


if __name__ == "__main__":
    main()
