"""The instrument: neighbouring claims re-tested on a pair of models, with controls, and a verdict by a rule fixed beforehand."""

from sparse_lens.comparisons.instrument.claim import CLAIMS as CLAIMS
from sparse_lens.comparisons.instrument.claim import Claim as Claim
from sparse_lens.comparisons.instrument.literature import read_literature as read_literature
from sparse_lens.comparisons.instrument.rows import ClaimRow as ClaimRow
from sparse_lens.comparisons.instrument.running import Report as Report
from sparse_lens.comparisons.instrument.running import claims as claims
from sparse_lens.comparisons.instrument.running import pairs_of_models as pairs_of_models
from sparse_lens.comparisons.instrument.verdicts import judge as judge
