{{- define "hookgate.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Numeric, since Kubernetes cannot tell whether a name is root. The group makes mounted Secrets and volumes ours. */}}
{{- define "hookgate.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Config and secrets: what both the relay and its test need. Directories, never subPath, whose files never change. Volumes are
numbered, since a Secret's name may have dots and theirs may not. */}}
{{- define "hookgate.configMounts" -}}
- name: config
  mountPath: /etc/hookgate
  readOnly: true
{{- range $number, $name := .Values.existingSecrets }}
- name: secret-{{ $number }}
  mountPath: /run/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- with .Values.server.tlsSecret }}
- name: tls
  mountPath: /run/tls
  readOnly: true
{{- end }}
{{- end -}}

{{- define "hookgate.configVolumes" -}}
- name: config
  configMap:
    name: {{ include "hookgate.fullname" . }}
{{- range $number, $name := .Values.existingSecrets }}
- name: secret-{{ $number }}
  secret:
    secretName: {{ $name }}
    defaultMode: 288 # 0440, in the only notation that all readers of YAML take alike
{{- end }}
{{- with .Values.server.tlsSecret }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 288 # 0440, in the only notation that all readers of YAML take alike
{{- end }}
{{- end -}}

{{- define "hookgate.pod" -}}
{{- $preStop := include "hookgate.preStopSeconds" . | int -}}
metadata:
  annotations:
    # A running hookgate takes most of a changed config by itself, but not all of it; pods that are started anew do.
    checksum/config: {{ include "hookgate.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include "hookgate.labels" . | nindent 4 }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "hookgate.serviceAccount" . }}
  automountServiceAccountToken: false
  # Variables of Services would stand beside those that override the config.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ include "hookgate.grace" . }}
  securityContext:
    {{- include "hookgate.podSecurityContext" . | nindent 4 }}
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  containers:
    - name: hookgate
      image: {{ include "hookgate.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [run, --config, /etc/hookgate/relay.toml]
      {{- with .Values.env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - name: http
          containerPort: 8080
        - name: admin
          containerPort: 9090
      # The admin port answers once the config is read, the ports are bound and the spool is recovered; a spool of many
      # gigabytes may take minutes.
      startupProbe:
        httpGet: { path: /livez, port: admin }
        periodSeconds: 2
        failureThreshold: 300
      # Whether the process runs at all. Not broker, Redis or disk: a restart mends none of them.
      livenessProbe:
        httpGet: { path: /livez, port: admin }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      # Without ?strict=1: all pods share the broker, and an outage of it must not take away all of them.
      readinessProbe:
        httpGet: { path: /readyz, port: admin }
        periodSeconds: 5
        timeoutSeconds: 2
        failureThreshold: 2
      {{- if $preStop }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $preStop }}
      {{- end }}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      securityContext:
        {{- include "hookgate.securityContext" . | nindent 8 }}
      volumeMounts:
        {{- include "hookgate.configMounts" . | nindent 8 }}
        {{- if .Values.spool.enabled }}
        - name: spool
          mountPath: /var/lib/hookgate
        {{- end }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    {{- include "hookgate.configVolumes" . | nindent 4 }}
    {{- if .Values.spool.enabled }}
    {{- if not .Values.spool.persistence.enabled }}
    - name: spool
      emptyDir:
        sizeLimit: {{ add (int .Values.spool.maxSizeMiB) (int .Values.spool.maxDeadSizeMiB) 64 }}Mi
    {{- else if .Values.spool.persistence.existingClaim }}
    - name: spool
      persistentVolumeClaim:
        claimName: {{ .Values.spool.persistence.existingClaim }}
    {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  topologySpreadConstraints:
    {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "hookgate.selector" $ | nindent 10 }}
      {{- if not (include "hookgate.persistent" $) }}
      # Else the pods of the old version count, and the new ones end up together where these are gone.
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
