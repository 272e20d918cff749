//! `/networks`: lists and shows the networks that a tenant's instances have their addresses in.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;

use super::{
    ApiState,
    auth::caller,
    error::ApiError,
    parameters::{ById, OnePage, path_id, take_tenant},
};
use crate::{
    core::{
        id::{NetworkId, TenantId},
        networks::store::{self, NetworkRecord},
    },
    http::{problem::Problem, query::Query},
};

/// A network.
#[derive(Serialize, ToSchema)]
pub struct Network {
    #[schema(value_type = Uuid)]
    id: NetworkId,
    name: String,
    #[schema(value_type = Uuid)]
    tenant_id: TenantId,
    #[schema(example = "10.64.0.0/16")]
    cidr: String,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// One page of networks.
#[derive(Serialize, ToSchema)]
pub struct NetworkList {
    items: Vec<Network>,
    next_cursor: Option<String>,
}

impl From<NetworkRecord> for Network {
    fn from(record: NetworkRecord) -> Self {
        Self {
            id: record.id,
            name: record.name,
            tenant_id: record.tenant,
            cidr: record.cidr.to_string(),
            created_at: record.created_at,
        }
    }
}

/// Lists networks, newest first.
#[utoipa::path(get, path = "/networks", operation_id = "list_networks", tag = "networks", params(OnePage),
    responses((status = 200, description = "A page of networks, newest first", body = NetworkList), ApiError))]
pub async fn list(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let mut query = Query::of(&request)?;
    let page = query.take_page();
    let tenant = take_tenant(&mut query, &caller(&request));
    query.finish()?;
    let page = store::list(&state.db, state.read_your_writes.consistency_for(tenant).await, Some(tenant), page).await?;
    let items = page.items.into_iter().map(Network::from).collect();
    Ok(HttpResponse::Ok().json(NetworkList { items, next_cursor: page.next_cursor }))
}

/// Shows a network.
#[utoipa::path(get, path = "/networks/{id}", operation_id = "get_network", tag = "networks", params(ById),
    responses((status = 200, description = "The network", body = Network), ApiError))]
pub async fn show(request: HttpRequest, state: web::Data<ApiState>) -> Result<HttpResponse, ApiError> {
    let id = NetworkId::from(path_id(&request)?);
    let record = store::get(&state.db, caller(&request).tenant, id).await?.ok_or_else(Problem::not_found)?;
    Query::of(&request)?.finish()?;
    Ok(HttpResponse::Ok().json(Network::from(record)))
}
