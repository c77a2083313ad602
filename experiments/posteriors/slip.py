"""Why the published distances are larger: the published script takes q's raw standard deviation for its raw
correlation when it forms q. The distances of the same fits, formed rightly and with that slip.

python experiments/posteriors/slip.py DRAWS STUDY, as in outputs/posteriors_scenario_1/posterior/known
outputs/posteriors_scenario_1
"""

import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from medcm_cli.numerics.metrics import squared_wasserstein
from medcm_cli.objectives.gaussian import Gaussian
from medcm_cli.runs.draws import read
from medcm_cli.runs.sweeps import finished
from medcm_cli.study.restore import at_last_checkpoint, restore


def formed(values: Mapping[str, Tensor], correlation: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (N, B, K) and covariance (N, B, K, K) of q with a raw correlation (1, N, B)."""
    mean, cov = Gaussian.from_raw(values["q.mean"], values["q.sd"], correlation).moments()
    return mean.permute(1, 2, 0).double(), cov.permute(2, 3, 0, 1).double()


@torch.no_grad()
def table(posterior: Path, study: Path) -> pd.DataFrame:
    """Mean and sd over fits of the squared distance to NUTS, averaged over subjects, times 1000."""
    drawn = torch.tensor(read(posterior).eta)
    mean = drawn.mean(0)
    deviation = drawn - mean
    cov = torch.einsum("sni,snj->nij", deviation, deviation) / (len(drawn) - 1)
    rows = []
    for batch in restore(finished([study])):
        values = at_last_checkpoint(batch).trained
        ways = {
            "rightly": values["q.correlation"],
            "raw sd of eta 1": values["q.sd"][:1],
            "raw sd of eta 2": values["q.sd"][1:],
        }
        for way, raw in ways.items():
            distance = 1000 * squared_wasserstein(*formed(values, raw), mean[:, None], cov[:, None]).mean(0)
            rows += [
                {"fits": record.address.variant, "correlation": way, "distance": float(one)}
                for record, one in zip(batch.records, distance, strict=True)
            ]
    grouped = pd.DataFrame(rows).groupby(["fits", "correlation"])["distance"]
    return grouped.agg(["mean", "std", "count"]).round(3)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]), Path(sys.argv[2])).to_string())
