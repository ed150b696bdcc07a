"""What kind of trouble each foreign exception class stands for.

Every exception class of botocore and aiohttp is listed by itself, not through its base, so that a release which brings
a new one fails a test instead of meeting users unclassified.
"""

from __future__ import annotations

import ssl
from typing import Literal

import aiohttp.client_exceptions as aio
import aiohttp.http_exceptions as wire
import botocore.exceptions as boto
from aiobotocore.response import AioReadTimeoutError
from botocore.parsers import ResponseParserError

from des.storage.s3_wire import ConnectError, WireError, WireTimeoutError

Kind = Literal["unreachable", "broken", "timeout", "tls", "credentials", "configuration", "reply", "unexpected"]

_CLASSES: dict[Kind, tuple[type[Exception], ...]] = {
    # No connection: another attempt may find one.
    "unreachable": (
        OSError, ConnectionRefusedError, ConnectError, boto.ConnectionError, boto.EndpointConnectionError,
        boto.HTTPClientError, boto.ProxyConnectionError, aio.ClientError, aio.ClientConnectionError,
        aio.ClientOSError, aio.ClientConnectorError, aio.ClientConnectorDNSError, aio.ClientHttpProxyError,
        aio.ClientProxyConnectionError, aio.ServerConnectionError, aio.UnixClientConnectorError,
    ),
    # A connection that ended, or bytes that are no reply.
    "broken": (
        WireError, EOFError, ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError,
        ResponseParserError, boto.ChecksumError, boto.ConnectionClosedError, boto.FlexibleChecksumError,
        boto.IncompleteReadError, boto.ResponseStreamingError, aio.ClientConnectionResetError, aio.ClientPayloadError,
        aio.ClientResponseError, aio.ContentTypeError, aio.ServerDisconnectedError, aio.UploadAbortedError,
        wire.BadHttpMessage, wire.BadHttpMethod, wire.BadStatusLine, wire.ContentEncodingError,
        wire.ContentLengthError, wire.DecompressSizeError, wire.HttpBadRequest, wire.HttpProcessingError,
        wire.InvalidHeader, wire.InvalidURLError, wire.LineTooLong, wire.PayloadEncodingError,
        wire.TransferEncodingError,
    ),
    "timeout": (
        TimeoutError, WireTimeoutError, AioReadTimeoutError, boto.ConnectTimeoutError, boto.ReadTimeoutError,
        aio.ConnectionTimeoutError, aio.ServerTimeoutError, aio.SocketTimeoutError,
    ),
    "tls": (
        ssl.SSLError, ssl.SSLCertVerificationError, boto.SSLError, aio.ClientConnectorCertificateError,
        aio.ClientConnectorSSLError, aio.ClientSSLError, aio.ServerFingerprintMismatch,
    ),
    "credentials": (
        boto.CredentialRetrievalError, boto.InvalidIMDSEndpointError, boto.InvalidIMDSEndpointModeError,
        boto.LoginAuthorizationCodeError, boto.LoginError, boto.LoginInsufficientPermissions,
        boto.LoginRefreshRequired, boto.LoginTokenLoadError, boto.MetadataRetrievalError, boto.NoAuthTokenError,
        boto.NoCredentialsError, boto.PartialCredentialsError, boto.RefreshWithMFAUnsupportedError, boto.SSOError,
        boto.SSOTokenLoadError, boto.TokenRetrievalError, boto.UnauthorizedSSOTokenError, boto.UnknownCredentialError,
        boto.UnknownTokenProviderError,
    ),
    # The AWS configuration or a setting of ours asks for something that does not exist.
    "configuration": (
        boto.BaseEndpointResolverError, boto.ConfigNotFound, boto.ConfigParseError, boto.EndpointProviderError,
        boto.EndpointResolutionError, boto.EndpointVariantError, boto.InfiniteLoopConfigError,
        boto.InvalidChecksumConfigError, boto.InvalidConfigError, boto.InvalidDefaultsMode, boto.InvalidDNSNameError,
        boto.InvalidEndpointConfigurationError, boto.InvalidEndpointDiscoveryConfigurationError,
        boto.InvalidHostLabelError, boto.InvalidMaxRetryAttemptsError, boto.InvalidProxiesConfigError,
        boto.InvalidRegionError, boto.InvalidRetryConfigurationError, boto.InvalidRetryModeError,
        boto.InvalidS3AddressingStyleError, boto.InvalidS3UsEast1RegionalEndpointConfigError,
        boto.InvalidSTSRegionalEndpointsConfigError, boto.MissingDependencyException, boto.NoRegionError,
        boto.ProfileNotFound, boto.ServiceNotInRegionError, boto.UnknownEndpointError,
        boto.UnknownEndpointResolutionBuiltInName, boto.UnknownFIPSEndpointError, boto.UnknownRegionError,
        boto.UnknownSignatureVersionError, boto.UnsupportedOutpostResourceError,
        boto.UnsupportedS3AccesspointConfigurationError, boto.UnsupportedS3ArnError,
        boto.UnsupportedS3ConfigurationError, boto.UnsupportedS3ControlArnError,
        boto.UnsupportedS3ControlConfigurationError, boto.UnsupportedSignatureVersionError, aio.InvalidURL,
        aio.InvalidUrlClientError, aio.NonHttpUrlClientError,
    ),
    # A reply of S3 with an error status; its status and code decide.
    "reply": (boto.ClientError, boto.EventStreamError),
    # A mistake in how the library is called, or a use of it that DES does not make.
    "unexpected": (
        boto.AliasConflictParameterError, boto.ApiVersionNotFoundError, boto.AwsChunkedWrapperError,
        boto.BotoCoreError, boto.CapacityNotAvailableError, boto.DataNotFoundError, boto.InvalidExpressionError,
        boto.MD5UnavailableError, boto.MissingParametersError, boto.MissingServiceIdError,
        boto.OperationNotPageableError, boto.PaginationError, boto.ParamValidationError, boto.RangeError,
        boto.StubAssertionError, boto.StubResponseError, boto.UndefinedModelAttributeError,
        boto.UnknownClientMethodError, boto.UnknownKeyError, boto.UnknownParameterError, boto.UnknownServiceError,
        boto.UnknownServiceStyle, boto.UnseekableStreamError, boto.UnStubbedResponseError,
        boto.UnsupportedServiceProtocolsError, boto.ValidationError, boto.WaiterConfigError, boto.WaiterError,
        aio.InvalidUrlRedirectClientError, aio.NonHttpUrlRedirectClientError, aio.RedirectClientError,
        aio.TooManyRedirects, aio.WSServerHandshakeError,
    ),
}  # fmt: skip

KINDS: dict[type[Exception], Kind] = {cls: kind for kind, classes in _CLASSES.items() for cls in classes}

# All that may come out of a call of the client or of the wire. What is missing here is a bug of ours and passes through.
FOREIGN: tuple[type[Exception], ...] = (
    boto.BotoCoreError, boto.ClientError, boto.UndefinedModelAttributeError, ResponseParserError, aio.ClientError,
    wire.HttpProcessingError, WireError, OSError, EOFError,
)  # fmt: skip


def kind_of(cls: type[Exception]) -> Kind:
    """Return the kind of an exception class: its own, or that of the nearest class it derives from."""
    return next((KINDS[base] for base in cls.__mro__ if base in KINDS), "unexpected")
