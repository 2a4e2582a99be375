//! Layer that records the duration and the code of each call.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use opentelemetry::StringValue;
use tokio::time::Instant;
use tonic::Code;
use tower::{Layer, Service};

use super::audit::code_name;
use crate::metrics;

/// Method of every path that is no RPC, by OpenTelemetry's conventions.
const OTHER: &str = "_OTHER";

/// See the module.
#[derive(Clone)]
pub(super) struct RpcMetricsLayer {
    /// Names of all RPCs by their paths; None if nothing is recorded.
    methods: Option<Arc<HashMap<String, StringValue>>>,
}

impl RpcMetricsLayer {
    /// `paths` are those of all RPCs.
    pub(super) fn new(paths: impl Iterator<Item = String>) -> Self {
        let named = |path: String| {
            let name: Arc<str> = path.trim_start_matches('/').into();
            (path, StringValue::from(name))
        };
        let methods = metrics::records_rpcs().then(|| Arc::new(paths.map(named).collect()));
        Self { methods }
    }
}

impl<S> Layer<S> for RpcMetricsLayer {
    type Service = RpcMetrics<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RpcMetrics {
            methods: self.methods.clone(),
            inner,
        }
    }
}

/// Service of [`RpcMetricsLayer`].
#[derive(Clone)]
pub(super) struct RpcMetrics<S> {
    methods: Option<Arc<HashMap<String, StringValue>>>,
    inner: S,
}

impl<S, R, B> Service<Request<R>> for RpcMetrics<S>
where
    S: Service<Request<R>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: 'static,
    B: 'static,
{
    type Response = Response<TimedBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let mut call = self.methods.as_ref().map(|methods| TimedCall {
            method: match methods.get(request.uri().path()) {
                Some(method) => method.clone(),
                None => OTHER.into(),
            },
            began_at: Instant::now(),
            code: None,
        });
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(call) = &mut call {
                call.note(answer.headers());
            }
            Ok(answer.map(|inner| TimedBody { inner, call }))
        })
    }
}

/// A call until its end, at which it is recorded.
struct TimedCall {
    method: StringValue,
    began_at: Instant,
    /// None until it is answered; a call that ends without an answer was cancelled.
    code: Option<Code>,
}

impl TimedCall {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(status.as_bytes()));
        }
    }
}

impl Drop for TimedCall {
    fn drop(&mut self) {
        let code = code_name(self.code.unwrap_or(Code::Cancelled));
        metrics::record_rpc(&self.method, code, self.began_at.elapsed());
    }
}

/// Answer of a call.
pub(super) struct TimedBody<B> {
    inner: B,
    call: Option<TimedCall>,
}

impl<B: Body<Data = Bytes> + Unpin> Body for TimedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let (Some(Ok(frame)), Some(call)) = (&frame, &mut self.call)
            && let Some(trailers) = frame.trailers_ref()
        {
            call.note(trailers);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
