{{- define "siem-relay.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "siem-relay.selector" -}}
app.kubernetes.io/name: siem-relay
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "siem-relay.labels" -}}
{{ include "siem-relay.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Name of the variable of a setting. */}}
{{- define "siem-relay.variable" -}}
SIEM_RELAY_{{ . | upper | replace "-" "_" }}
{{- end }}

{{- define "siem-relay.check" -}}
{{- $insecure := and (eq (toString .Values.settings.insecure) "true") (eq (index .Values.settings "insecure-no-authentication" | toString) "true") }}
{{- if not (or $insecure (and .Values.secrets.tls .Values.secrets.callers)) }}
{{- fail "set secrets.tls and secrets.callers; without them the service listens beyond loopback only with settings.insecure=true and settings.insecure-no-authentication=true" }}
{{- end }}
{{- if eq .Values.mode "shared" }}
{{- range $name := list "logUrl" "databaseUrl" }}
{{- if not (index $.Values.shared $name) }}{{ fail (printf "mode shared needs shared.%s" $name) }}{{ end }}
{{- end }}
{{- if not .Values.secrets.externalIdKey }}{{ fail "mode shared needs secrets.externalIdKey: the same key for all instances" }}{{ end }}
{{- end }}
{{- end }}

{{/* Environment of a container. */}}
{{- define "siem-relay.env" -}}
- name: SIEM_RELAY_LISTEN
  value: "[::]:50051"
- name: SIEM_RELAY_METRICS_LISTEN
  value: "[::]:9464"
- name: SIEM_RELAY_DATA_DIR
  value: /data
{{- if eq .Values.mode "shared" }}
- name: SIEM_RELAY_LOG_URL
  value: {{ .Values.shared.logUrl | quote }}
- name: SIEM_RELAY_DATABASE_URL
  value: {{ .Values.shared.databaseUrl | quote }}
{{- with .Values.secrets.storage }}
{{- range $name := list "log-password" "database-password" }}
- name: {{ include "siem-relay.variable" $name }}
  valueFrom:
    secretKeyRef: {name: {{ $.Values.secrets.storage }}, key: {{ $name }}, optional: true}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.secrets.tls }}
- name: SIEM_RELAY_TLS_CERT
  value: /secrets/tls/tls.crt
- name: SIEM_RELAY_TLS_KEY
  value: /secrets/tls/tls.key
{{- if .Values.secrets.clientCertificates }}
- name: SIEM_RELAY_TLS_CLIENT_CA
  value: /secrets/tls/ca.crt
{{- end }}
{{- end }}
{{- if .Values.secrets.callers }}
- name: SIEM_RELAY_CALLERS
  value: /secrets/callers/callers.toml
{{- end }}
{{- if .Values.secrets.externalIdKey }}
- name: SIEM_RELAY_EXTERNAL_ID_KEY_FILE
  value: /secrets/external-id/external-id.key
{{- end }}
{{- range $name, $value := .Values.settings }}
- name: {{ include "siem-relay.variable" $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Pod of the service. */}}
{{- define "siem-relay.pod" -}}
metadata:
  labels:
    {{- include "siem-relay.labels" . | nindent 4 }}
  {{- with .Values.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "siem-relay.name" . }}
  # It never asks Kubernetes for anything. Roles of AWS for service accounts bring a token of their own.
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    # Secrets become 0440, owned by root, which the service accepts.
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.mode "shared" }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: topology.kubernetes.io/zone
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "siem-relay.selector" . | nindent 10 }}
  {{- end }}
  containers:
    - name: siem-relay
      image: "{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}"
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args: [serve]
      env:
        {{- include "siem-relay.env" . | nindent 8 }}
      ports:
        - {name: grpc, containerPort: 50051}
        - {name: metrics, containerPort: 9464}
      # A start may read a long log for minutes: the listener of the probes is there once it has read it.
      startupProbe:
        httpGet: {path: /livez, port: metrics}
        periodSeconds: 5
        failureThreshold: 720
      # It asks no dependency: a pod is not restarted because a broker or the database is away.
      livenessProbe:
        httpGet: {path: /livez, port: metrics}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: metrics}
        periodSeconds: 5
        timeoutSeconds: 5
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /data}
        {{- if .Values.secrets.tls }}
        - {name: tls, mountPath: /secrets/tls, readOnly: true}
        {{- end }}
        {{- if .Values.secrets.callers }}
        - {name: callers, mountPath: /secrets/callers, readOnly: true}
        {{- end }}
        {{- if .Values.secrets.externalIdKey }}
        - {name: external-id, mountPath: /secrets/external-id, readOnly: true}
        {{- end }}
  volumes:
    - name: data
      {{- if eq .Values.mode "shared" }}
      # Only the socket for commands is there.
      emptyDir: {sizeLimit: 16Mi}
      {{- else }}
      persistentVolumeClaim: {claimName: {{ .Values.persistence.existingClaim | default (include "siem-relay.name" .) }}}
      {{- end }}
    {{- if .Values.secrets.tls }}
    - name: tls
      secret: {secretName: {{ .Values.secrets.tls }}, defaultMode: 0400}
    {{- end }}
    {{- if .Values.secrets.callers }}
    - name: callers
      secret: {secretName: {{ .Values.secrets.callers }}, defaultMode: 0400}
    {{- end }}
    {{- if .Values.secrets.externalIdKey }}
    - name: external-id
      secret: {secretName: {{ .Values.secrets.externalIdKey }}, defaultMode: 0400}
    {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
