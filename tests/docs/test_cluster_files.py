"""What stands in cluster/ is what Ray, AWS and llmsched accept, and opens nothing to the world."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from llmsched.executors import ray_user
from llmsched.spec import cluster
from llmsched.spec.compile import compile_configuration

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
RAY_FILES = ("local.yaml", "onprem.yaml", "aws.yaml")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return found


def commands(config: dict[str, Any]) -> dict[str, str]:
    return {part: "\n".join(config[part]) for part in ("head_start_ray_commands", "worker_start_ray_commands")}


@pytest.mark.parametrize("name", RAY_FILES)
def test_rays_launcher_accepts_the_file(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(read(name)))
    validate_config(prepared)
    assert prepared["auth"]["ssh_user"]


@pytest.mark.parametrize("name", RAY_FILES)
def test_every_ray_starts_in_token_mode_with_its_dashboard_on_loopback(name: str) -> None:
    starts = [text for text in commands(read(name)).values() if "ray start" in text]
    assert starts
    for text in starts:
        assert "RAY_AUTH_MODE=token" in text
        assert "0.0.0.0" not in text
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_the_local_file_stops_no_other_ray_by_itself() -> None:
    config = read("local.yaml")
    assert config["head_start_ray_commands"] and "ray stop" not in json.dumps(config)
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][1]


@pytest.mark.parametrize("name", ["onprem.yaml", "aws.yaml"])
def test_the_token_travels_to_every_node_and_stays_private(name: str) -> None:
    config = read(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"][0]
    assert ".git" in config["rsync_exclude"]


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with mock_aws():
        yield


def built(region: str) -> tuple[dict[str, str], str, Any]:
    """(outputs of the stack, a subnet, the EC2 client), on AWS as moto has it."""
    import boto3

    ec2 = boto3.client("ec2", region)
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    stacks = boto3.client("cloudformation", region)
    stacks.create_stack(
        StackName="llmsched",
        TemplateBody=(CLUSTER / "aws-stack.yaml").read_text(),
        Capabilities=["CAPABILITY_NAMED_IAM"],
        Parameters=[
            {"ParameterKey": "Vpc", "ParameterValue": vpc},
            {"ParameterKey": "Me", "ParameterValue": "203.0.113.7/32"},
        ],
    )
    outputs = stacks.describe_stacks(StackName="llmsched")["Stacks"][0]["Outputs"]
    subnet = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"][0]["SubnetId"]
    return {each["OutputKey"]: each["OutputValue"] for each in outputs}, subnet, ec2


@pytest.fixture
def on_aws(aws: None, tmp_path: Path) -> tuple[dict[str, Any], dict[str, str], Any]:
    """aws.yaml with its CHANGE lines changed, after Ray's own bootstrap; the stack's outputs; the EC2 client."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config

    config = read("aws.yaml")
    outputs, subnet, ec2 = built(config["provider"]["region"])
    ec2.create_key_pair(KeyName="llmsched")
    for name, kind in config["available_node_types"].items():
        profile = outputs["Head" if name == "head" else "Worker"]
        node = {"SubnetIds": [subnet], "SecurityGroupIds": [outputs["SecurityGroup"]]}
        kind["node_config"].update(node, IamInstanceProfile={"Arn": profile})
    return bootstrap_aws(prepare_config(config)), outputs, ec2


def test_nothing_but_ssh_from_one_address_gets_into_the_security_group(
    on_aws: tuple[dict[str, Any], dict[str, str], Any],
) -> None:
    config, outputs, ec2 = on_aws
    groups = {group["GroupId"]: group for group in ec2.describe_security_groups()["SecurityGroups"]}
    assert {group["GroupName"] for group in groups.values()} == {"default", "llmsched-nodes"}  # Ray made none
    rules = groups[outputs["SecurityGroup"]]["IpPermissions"]
    from_outside = [rule for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in from_outside] == [(22, 22)]
    assert [each["CidrIp"] for each in from_outside[0]["IpRanges"]] == ["203.0.113.7/32"]
    among = [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]]
    assert among == [outputs["SecurityGroup"]]
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["SecurityGroupIds"] == [outputs["SecurityGroup"]]


def test_every_aws_node_refuses_the_old_metadata_service_and_encrypts_its_disk(
    on_aws: tuple[dict[str, Any], dict[str, str], Any],
) -> None:
    config, outputs, _ = on_aws
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
        assert node["IamInstanceProfile"]["Arn"] == outputs["Head" if name == "head" else "Worker"]


def test_only_the_head_may_rent_machines_and_end_only_its_own(aws: None) -> None:
    import boto3

    built("us-west-2")
    iam = boto3.client("iam")
    assert iam.list_role_policies(RoleName="llmsched-worker")["PolicyNames"] == []
    policy = iam.get_role_policy(RoleName="llmsched-head", PolicyName="its-own-machines")
    document = yaml.safe_load(str(policy["PolicyDocument"]))  # the simulation answers with text
    ending = [each for each in document["Statement"] if "ec2:TerminateInstances" in each["Action"]]
    owned = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": read("aws.yaml")["cluster_name"]}}
    assert [each["Condition"] for each in ending] == [owned]


def test_the_cluster_file_loads_and_is_a_configuration() -> None:
    file = CLUSTER / "llmsched.yaml"
    configuration = compile_configuration(cluster.load(file.read_text(), str(file)), version=1)
    assert [queue.name for queue in configuration.queues] == ["prod", "research", "default"]
    assert configuration.scheduling.backfill == "easy"


def test_every_metric_of_the_dashboard_is_one_that_the_controller_has(controller: Any) -> None:
    import httpx

    answer = httpx.get(f"{controller.url}/api/v1/metrics", headers={"authorization": f"Bearer {controller.token}"})
    there = set(re.findall(r"^# TYPE (\w+) ", answer.text, re.M))
    board = json.loads((CLUSTER / "dashboards" / "llmsched.json").read_text())
    asked = {
        re.sub("_(bucket|sum|count)$", "", name)
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"llmsched_\w+", target["expr"])
    }
    assert len(board["panels"]) > 10
    assert asked <= there


def test_what_prometheus_is_told_to_scrape_is_where_the_metrics_are() -> None:
    from llmsched.api import metrics

    job = read("dashboards/prometheus.yml")["scrape_configs"][0]
    assert job["metrics_path"] in {route.path for route in metrics.router.routes}  # type: ignore[attr-defined]
    assert job["authorization"]["type"] == "Bearer"


def test_no_file_of_the_cluster_folder_holds_a_secret() -> None:
    for file in CLUSTER.rglob("*"):
        if file.is_file():
            assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN .*PRIVATE KEY|\b[0-9a-f]{64}\b", file.read_text()), file


@pytest.mark.parametrize("name", ["onprem.yaml", "aws.yaml"])
def test_work_runs_as_a_user_whose_key_opens_nothing_of_the_controllers(name: str) -> None:
    """Ray copies its key to the head, where work can read it: it must not let work in as who may become root."""
    config = read(name)
    operator, auth = config["metadata"]["llmsched"], config["auth"]
    assert auth["ssh_user"] == "llmsched-ray" != operator["login"]
    assert auth["ssh_private_key"] != operator["key"]


def test_every_aws_node_makes_the_user_of_work_without_sudo(
    on_aws: tuple[dict[str, Any], dict[str, str], Any],
) -> None:
    config, _, _ = on_aws
    for kind in config["available_node_types"].values():
        made = yaml.safe_load(kind["node_config"]["UserData"])["users"]
        (work,) = [one for one in made if one != "default"]
        assert work["name"] == config["auth"]["ssh_user"]
        assert not {"sudo", "groups", "primary_group"} & work.keys()


def test_the_image_copies_what_is_there_and_what_dockerignore_lets_through() -> None:
    root, text = CLUSTER.parent, (CLUSTER / "Dockerfile").read_text()
    copied = [name for words in re.findall(r"^COPY (?!--from)(.+)$", text, re.M) for name in words.split()[:-1]]
    let_through = [line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert copied and sorted(copied) == sorted(let_through)
    assert all((root / name).exists() for name in copied)


def test_the_images_commands_are_a_shells_and_its_user_is_the_one_up_looks_for() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", "")
    lines = re.findall(r"^RUN (.+)$", text, re.M)
    assert lines
    for line in lines:
        subprocess.run(["sh", "-n", "-c", line], check=True)
    assert any(line.startswith("useradd") and line.split()[-1] == ray_user.DEFAULT for line in lines)
