"""What 100 labels teach a model that has read all reviews before without a label, beside one that has not."""

import json

from llmsched import Client

client = Client()
number, baseline = (client.status(name).metrics["eval.accuracy"] for name in ("few", "few-alone"))
print(json.dumps({"number": number, "baseline": baseline}))
