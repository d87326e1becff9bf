{{- define "hookgate.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{/* 52, since a StatefulSet adds a hash of 11 characters to it in a label that takes 63. */}}
{{- define "hookgate.fullname" -}}
{{- $name := include "hookgate.name" . -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "hookgate.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "hookgate.fullname" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* The component keeps the test pod out of the Service, the budget and the network policy. */}}
{{- define "hookgate.selector" -}}
app.kubernetes.io/name: {{ include "hookgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "hookgate.commonLabels" -}}
app.kubernetes.io/name: {{ include "hookgate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "hookgate.labels" -}}
{{ include "hookgate.commonLabels" . }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "hookgate.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* "true" where the spool has a volume that outlasts the pod. */}}
{{- define "hookgate.persistent" -}}
{{- if and .Values.spool.enabled .Values.spool.persistence.enabled -}}true{{- end -}}
{{- end -}}

{{/* Kubernetes before 1.30 has no sleep of its own, and the image has no shell. */}}
{{- define "hookgate.preStopSeconds" -}}
{{- ternary (int .Values.termination.preStopSeconds) 0 (semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{/* How long a stop takes at worst: the sleep before SIGTERM, drain_delay, shutdown_timeout, the last publishes of requests and of
the spool (a reply_deadline each), and 5 s each to close sinks, spool, admin port and background. */}}
{{- define "hookgate.graceNeeded" -}}
{{- $server := .Values.server -}}
{{- $publishes := divf (mul 2 (int $server.replyDeadlineMilliseconds)) 1000 | ceil | int -}}
{{- add (include "hookgate.preStopSeconds" . | int) (int $server.drainDelaySeconds) (int $server.shutdownTimeoutSeconds) $publishes 20 -}}
{{- end -}}

{{- define "hookgate.grace" -}}
{{- $needed := include "hookgate.graceNeeded" . | int -}}
{{- $grace := .Values.termination.gracePeriodSeconds -}}
{{- if kindIs "invalid" $grace -}}
{{- $needed -}}
{{- else if lt (int $grace) $needed -}}
{{- fail (printf "termination.gracePeriodSeconds is %d, but a stop may take %d s (preStopSeconds + drainDelaySeconds + shutdownTimeoutSeconds + 2 x replyDeadlineMilliseconds + 20 s to close): hookgate would be killed before it has published what it accepted" (int $grace) $needed) -}}
{{- else -}}
{{- int $grace -}}
{{- end -}}
{{- end -}}

{{/* A Kubernetes quantity like 768Mi in MiB. */}}
{{- define "hookgate.mib" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "Ti" . -}}{{ mul $number 1048576 }}{{- else if hasSuffix "Gi" . -}}{{ mul $number 1024 }}{{- else -}}{{ $number }}{{- end -}}
{{- end -}}

{{/* What the schema cannot say, since it needs two values at once. */}}
{{- define "hookgate.validate" -}}
{{- range list "server" "admin" "spool" -}}
{{- if regexMatch (printf "(?m)^\\s*(\\[\\s*%s\\s*[\\].]|%s\\s*[.=])" . .) $.Values.config -}}
{{- fail (printf "config has [%s], which is made from the values %s.*: probes, ports, volumes and the grace period depend on it" . (ternary "server" . (eq . "admin"))) -}}
{{- end -}}
{{- end -}}
{{- range .Values.env -}}
{{- if regexMatch "^HOOKGATE_(ADMIN__|SPOOL__|SERVER__(LISTEN|TLS|DRAIN_DELAY|SHUTDOWN_TIMEOUT|REPLY_DEADLINE|MAX_IN_FLIGHT_BYTES)($|__))" .name -}}
{{- fail (printf "env has %s: set the value under server or spool instead, since probes, ports, volumes and the grace period depend on it" .name) -}}
{{- end -}}
{{- end -}}
{{- range regexFindAll "/run/secrets/[^/\"]+/" .Values.config -1 -}}
{{- $secret := base . -}}
{{- if not (has $secret $.Values.existingSecrets) -}}
{{- fail (printf "config names a file in /run/secrets/%s/, but existingSecrets has no %q" $secret $secret) -}}
{{- end -}}
{{- end -}}
{{- $memory := .Values.resources.limits.memory -}}
{{- $memoryNeeded := add (mul 2 (int .Values.server.maxInFlightMiB)) 128 | int -}}
{{- if lt (include "hookgate.mib" $memory | int) $memoryNeeded -}}
{{- fail (printf "resources.limits.memory is %s, but server.maxInFlightMiB asks for %dMi: twice as much, and 128 for everything else" $memory $memoryNeeded) -}}
{{- end -}}
{{- if include "hookgate.persistent" . -}}
{{- if ne .Values.autoscaling.kind "none" -}}
{{- fail "autoscaling with a persistent spool: a pod that is scaled away leaves its events on its volume, where nobody publishes them" -}}
{{- end -}}
{{- if and .Values.spool.persistence.existingClaim (gt (int .Values.replicas) 1) -}}
{{- fail "spool.persistence.existingClaim with replicas > 1: one process has a spool" -}}
{{- end -}}
{{- $sizeNeeded := add (int .Values.spool.maxSizeMiB) (int .Values.spool.maxDeadSizeMiB) (int .Values.spool.minFreeMiB) | int -}}
{{- if and (not .Values.spool.persistence.existingClaim) (lt (include "hookgate.mib" .Values.spool.persistence.size | int) $sizeNeeded) -}}
{{- fail (printf "spool.persistence.size is %s, but maxSizeMiB + maxDeadSizeMiB + minFreeMiB are %dMi" .Values.spool.persistence.size $sizeNeeded) -}}
{{- end -}}
{{- end -}}
{{- end -}}
