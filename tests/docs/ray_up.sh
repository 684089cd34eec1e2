#!/usr/bin/env bash
# Follows the header of cluster/local.yaml to the letter, on a machine of its own: own processes, network, /root and
# /tmp, so that `ray stop` and port 22 are nobody else's. As root:
#   unshare --pid --net --mount --fork --kill-child --mount-proc bash tests/docs/ray_up.sh
set -euo pipefail
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python_home=$("$project/.venv/bin/python" -c 'import sys; print(sys.base_prefix)')

ip link set lo up
hold=/run/llmsched-test                       # what lies under /root and is needed outlives the empty /root
mount -t tmpfs tmpfs /run && mkdir -p $hold/python $hold/project /run/sshd
mount --bind "$python_home" $hold/python
mount --bind "$project" $hold/project
mount -t tmpfs -o mode=700 tmpfs /root && mount -t tmpfs tmpfs /tmp
mkdir -p "$python_home" "$project" /root/.ssh && chmod 700 /root/.ssh
mountpoint -q "$python_home" || [ -e "$python_home/bin" ] || mount --bind $hold/python "$python_home"
[ -e "$project/.venv" ] || mount --bind $hold/project "$project"
cp /etc/skel/.profile /etc/skel/.bashrc /root/
ln -s "$project" /root/llmsched

ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
ssh-keygen -q -t ed25519 -N '' -f /tmp/hostkey
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
/usr/sbin/sshd -f /dev/null -h /tmp/hostkey -E /tmp/sshd.log -o ListenAddress=127.0.0.1 \
  -o PasswordAuthentication=no -o UsePAM=no -o PermitRootLogin=prohibit-password

trap 'tail -n 40 /root/.local/share/llmsched/logs/bridge.log >&2' ERR
cd "$project"
unset LLMSCHED_HOME                           # the controller on the head uses its default, and so do we
export PATH="$project/.venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
sed "s/ssh_user: ubuntu .*/ssh_user: $(id -un)/" cluster/local.yaml > /tmp/local.yaml
cat > /tmp/hello.yaml <<'YAML'
name: hello
kind: task
resources: {cpus: 1, memory: 100MB}
workers: 1
task: {run: [echo, "hello from the cluster"]}
YAML

echo "== up"; llmsched cluster up --yes /tmp/local.yaml
echo "== without the token"; RAY_AUTH_MODE=disabled timeout 60 ray status --address 127.0.0.2:6379 || echo "refused"
echo "== token file $(stat -c %a /root/.ray/auth_token)"
echo "== outside loopback: $(ss -Hltn | awk '$4 !~ /^(127\.|\[::1\]|\[::ffff:127\.)/ {print $4}' | sort -u | tr '\n' ' ')"
echo "== join"
llmsched nodes
llmsched apply -f /tmp/hello.yaml --wait --timeout 300
llmsched logs hello
echo "== status"; llmsched cluster status /tmp/local.yaml
echo "== down"; llmsched cluster down --yes /tmp/local.yaml
echo "== left: $(pgrep -fc 'raylet|gcs_server' || true)"
