"""One rank of `test_retrieval.test_ranks_share_the_gallery_exactly`: FOLDER RANK WORLD."""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from clipkit.types import Ranks

sys.path.insert(0, str(Path(__file__).parent.parent / "helpers"))
from small_task import make_retrieval, make_task

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo", init_method=f"file://{folder / f'store{world}'}", rank=rank, world_size=world)
task = make_task(folder / "shapes.lance")
result = make_retrieval(folder / "shapes.lance", task).run(task.model, Ranks(rank, world))
(folder / f"world{world}rank{rank}.json").write_text(json.dumps(result))
dist.destroy_process_group()
