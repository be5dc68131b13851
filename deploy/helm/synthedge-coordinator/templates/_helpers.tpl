{{- define "coordinator.name" -}}
{{- printf "%s-synthedge" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "coordinator.labels" -}}
app.kubernetes.io/name: synthedge-coordinator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- define "coordinator.selector" -}}
app.kubernetes.io/name: synthedge-coordinator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: coordinator
{{- end -}}

{{- define "coordinator.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* What would start and then fail, or lose data, is refused here in a sentence. */}}
{{- define "coordinator.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.database.url) -}}
{{- fail (printf "replicas is %v, but SQLite serves one process: set database.url" .Values.replicas) -}}
{{- end -}}
{{- if not .Values.claim -}}
{{- fail "set claim to a PersistentVolumeClaim: it will hold the consortium's certificate authority" -}}
{{- end -}}
{{- if and .Values.setup.init (or (not .Values.consortium.name) (not .Values.consortium.hosts) (not .Values.dictionary)) -}}
{{- fail "a new consortium needs consortium.name, consortium.hosts and dictionary (--set-file dictionary=consortium.toml); for a volume that holds a coordinator already set setup.init=false" -}}
{{- end -}}
{{- if and (not .Values.setup.init) (or (not .Values.consortium.name) (not .Values.consortium.hosts)) -}}
{{- fail "set consortium.name and consortium.hosts to those of the coordinator on the volume" -}}
{{- end -}}
{{- if and .Values.backup.enabled (not .Values.backup.claim) -}}
{{- fail "backup.enabled needs backup.claim: a volume that is not the coordinator's own" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled needs metrics.enabled" -}}
{{- end -}}
{{- end -}}

{{/* Pods of the "restricted" Pod Security Standard. fsGroup applies to an empty volume only: from then on a change of
     modes would open the private keys to the group, and the coordinator would refuse them. */}}
{{- define "coordinator.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "coordinator.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "coordinator.mounts" -}}
- name: state
  mountPath: /var/lib/synthedge
- name: tmp
  mountPath: /tmp
{{- if .Values.database.passwordSecret.name }}
- name: database-password
  mountPath: /run/secrets/database
  readOnly: true
{{- end }}
{{- end -}}

{{- define "coordinator.volumes" -}}
- name: state
  persistentVolumeClaim:
    claimName: {{ .Values.claim }}
- name: tmp
  emptyDir:
    medium: Memory
    sizeLimit: 64Mi
{{- if .Values.database.passwordSecret.name }}
- name: database-password
  secret:
    secretName: {{ .Values.database.passwordSecret.name }}
    defaultMode: 0400
    items:
      - key: {{ .Values.database.passwordSecret.key }}
        path: password
{{- end }}
{{- end -}}

{{/* Over the file that 'init' wrote, so that settings change with the release. */}}
{{- define "coordinator.settingsMount" -}}
- name: settings
  mountPath: /var/lib/synthedge/coordinator/coordinator.toml
  subPath: coordinator.toml
  readOnly: true
{{- end -}}

{{- define "coordinator.settingsVolume" -}}
- name: settings
  configMap:
    name: {{ include "coordinator.name" . }}
{{- end -}}

{{- define "coordinator.setupPod" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
restartPolicy: Never
securityContext:
  {{- include "coordinator.podSecurity" . | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
