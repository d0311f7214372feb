"""A method in a package of its own: pip install ./examples/soft_spider, then attach("soft_spider", ...)"""

from dataclasses import dataclass

from methods.shards import Shards
from methods.spider import Spider, SpiderParams


@dataclass(frozen=True)
class SoftSpiderParams(SpiderParams):
    """floor: share of every change that stays, whatever SPIDER's mask says."""

    floor: float = 0.1


class SoftSpider(Spider):
    """SPIDER with the mask M' = floor + (1 - floor) M."""

    Params = SoftSpiderParams
    title = "SPIDER, soft"

    def after_step(self, shards: Shards) -> None:
        """Mask the step as SPIDER does, then put back a part of what the mask took away."""
        stepped = {shard.name: shard.weight.clone() for shard in shards}
        super().after_step(shards)
        for shard in shards:
            shard.weight.lerp_(stepped[shard.name], self.params.floor)
