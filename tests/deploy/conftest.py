import pytest
import yaml

from tests.deploy.stub import StubCluster


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A stub of the Kubernetes API that the real client finds through KUBECONFIG."""
    stub = StubCluster()
    path = tmp_path / "kubeconfig"
    named = {
        "clusters": [{"name": "stub", "cluster": {"server": stub.host}}],
        "users": [{"name": "stub", "user": {"token": "secret"}}],
        "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
    }
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "stub"} | named))
    monkeypatch.setenv("KUBECONFIG", str(path))
    yield stub
    stub.close()
