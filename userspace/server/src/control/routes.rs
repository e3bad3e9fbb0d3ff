//! What is served: metrics and health for everyone who can reach the port, status and limits for
//! those whom the socket admits.

use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Instant;

use axum::extract;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::clock;
use crate::control::SharedRates;
use crate::control::orders::{Order, offer};
use crate::limits::{Change, LimitKeeper, Target};
use crate::metrics;
use crate::status::Status;
use crate::vitals::Vitals;

/// The path of [`Status`] on the control socket.
pub(crate) const STATUS_PATH: &str = "/v1/status";

/// The path of limits: [`LimitsView`](crate::limits::LimitsView) to read, [`Change`] to write.
pub(crate) const LIMITS_PATH: &str = "/v1/limits";
/// The path that a [`Target`]'s slots are read at.
pub(crate) const FIND_LIMITS_PATH: &str = "/v1/limits/find";
/// The path that has the configuration read again: [`Reloaded`](crate::reload::Reloaded).
pub(crate) const RELOAD_PATH: &str = "/v1/reload";
/// The path that has the server drain.
pub(crate) const DRAIN_PATH: &str = "/v1/drain";
/// Peers in one answer.
const MAX_PEERS: usize = 65_536;

/// What the routes read, and whom they ask.
pub(crate) struct State {
    pub(crate) vitals: Arc<Vitals>,
    pub(crate) limits: Arc<LimitKeeper>,
    orders: SyncSender<Order>,
    registry: Registry,
    rates: SharedRates,
    runtime: &'static str,
}

impl State {
    pub(crate) fn new(
        vitals: Arc<Vitals>,
        limits: Arc<LimitKeeper>,
        orders: SyncSender<Order>,
        runtime: &'static str,
    ) -> Self {
        let registry = metrics::registry(Arc::clone(&vitals), Arc::clone(&limits));
        Self {
            vitals,
            limits,
            orders,
            registry,
            rates: SharedRates::default(),
            runtime,
        }
    }

    /// Takes the totals that rates are made from.
    pub(crate) fn sample(&self, now: Instant) {
        let relayed = self.vitals.relayed();
        self.rates.with(|window| window.sample(now, relayed));
    }

    fn status(&self) -> Status {
        let rates = self.rates.with(|window| window.rates());
        Status::new(&self.vitals, &self.limits, rates, self.runtime)
    }
}

type Shared = extract::State<Arc<State>>;

/// Metrics and health.
pub(crate) fn observe(state: Arc<State>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(state)
}

/// Status, limits, and orders to the server.
pub(crate) fn control(state: Arc<State>) -> Router {
    Router::new()
        .route(STATUS_PATH, get(status))
        .route(LIMITS_PATH, get(limits).post(change_limits))
        .route(FIND_LIMITS_PATH, post(find_limits))
        .route(RELOAD_PATH, post(reload))
        .route(DRAIN_PATH, post(drain))
        .with_state(state)
}

async fn metrics_text(extract::State(state): Shared) -> Response {
    aside(move || match metrics::render(&state.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    })
    .await
}

/// An answer about health.
#[derive(Serialize)]
struct Health {
    ok: bool,
    reasons: Vec<&'static str>,
}

impl IntoResponse for Health {
    fn into_response(self) -> Response {
        let code = if self.ok {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (code, Json(self)).into_response()
    }
}

/// Whether a restart would help.
async fn livez(extract::State(state): Shared) -> Health {
    let ok = state.vitals.is_alive();
    Health {
        ok,
        reasons: if ok {
            vec![]
        } else {
            vec!["a shard has ended"]
        },
    }
}

/// Whether new allocations can be made.
async fn readyz(extract::State(state): Shared) -> Health {
    let reasons = state.vitals.unready();
    Health {
        ok: reasons.is_empty(),
        reasons,
    }
}

async fn status(extract::State(state): Shared) -> Json<Status> {
    Json(state.status())
}

/// `?peers=N`: at most so many peers.
async fn limits(
    extract::State(state): Shared,
    extract::RawQuery(query): extract::RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let most = match query.strip_prefix("peers=").map(str::parse::<usize>) {
        None if query.is_empty() => MAX_PEERS,
        Some(Ok(most)) => most.min(MAX_PEERS),
        None | Some(Err(_)) => return refused(format!("{query:?} is not peers=NUMBER")),
    };
    aside(move || Json(state.limits.view(clock::now(), most)).into_response()).await
}

async fn find_limits(
    extract::State(state): Shared,
    extract::Json(target): extract::Json<Target>,
) -> Response {
    aside(move || Json(state.limits.find(&target)).into_response()).await
}

async fn change_limits(
    extract::State(state): Shared,
    extract::Json(change): extract::Json<Change>,
) -> Response {
    aside(move || match state.limits.change(clock::now(), &change) {
        Ok(changed) => {
            let target = &change.target;
            match &changed.trouble {
                None => tracing::info!(%target, limit = ?change.set, "limit changed"),
                Some(trouble) => {
                    tracing::warn!(%target, limit = ?change.set, trouble, "limit changed, not kept");
                }
            }
            Json(changed).into_response()
        }
        Err(error) => refused(error.to_string()),
    })
    .await
}

async fn reload(extract::State(state): Shared) -> Response {
    let (reply, outcome) = oneshot::channel();
    if !offer(&state.orders, Order::Reload(Some(reply))) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match outcome.await {
        Ok(Ok(reloaded)) => Json(reloaded).into_response(),
        Ok(Err(reason)) => refused(reason),
        // The server stops.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Answers with the number of allocations that are left.
async fn drain(extract::State(state): Shared) -> Response {
    if !offer(&state.orders, Order::Drain) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    Json(state.vitals.allocations()).into_response()
}

fn refused(reason: String) -> Response {
    (StatusCode::UNPROCESSABLE_ENTITY, reason).into_response()
}

/// Runs what may take long, such as a disk's answer, beside the control thread.
async fn aside(run: impl FnOnce() -> Response + Send + 'static) -> Response {
    match tokio::task::spawn_blocking(run).await {
        Ok(response) => response,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
