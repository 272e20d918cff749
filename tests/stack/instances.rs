//! From `POST /instances` to the page that the container serves.

use serde_json::json;

use crate::stack::{Stack, demo_image, first_page, page};

pub async fn created_instance_serves_a_page_on_its_published_port(stack: &Stack) {
    let body = json!({"name": "page", "image": demo_image(), "ports": [{"container": 80}]});
    let instance = stack.client.create_running(body).await;
    assert_eq!(instance["host"]["address"], "127.0.0.1");
    assert!(first_page(&instance).await.contains("It runs."));
    stack.client.delete_fully(instance["id"].as_str().unwrap()).await;
    assert!(page(&instance).await.is_err());
}
